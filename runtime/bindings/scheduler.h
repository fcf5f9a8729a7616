// The class Scheduler of the Python module and its answers.

#pragma once

#include <nanobind/nanobind.h>

namespace sala::python {

void bind_scheduler(nanobind::module_& module);

}  // namespace sala::python
