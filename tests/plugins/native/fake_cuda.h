// Control of the fake CUDA driver.

#pragma once

/// Architecture of the only device, 10 * major + minor.
extern "C" void fake_cuda_set_sm(int sm);

/// What was asked of the driver since the last call, as one JSON array. Valid until the next call.
extern "C" const char* fake_cuda_take_events();
