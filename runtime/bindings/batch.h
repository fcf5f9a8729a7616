// Answers of several sessions that are drawn together, in Python.

#pragma once

#include <nanobind/nanobind.h>

namespace sala::python {

void bind_batch(nanobind::module_& module);

}  // namespace sala::python
