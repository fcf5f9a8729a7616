// Stands for libgcc_s.so.1 while a library is linked. It defines the functions of the C++ ABI for unwinding by name
// alone: the library finds the real ones when it is loaded.

#define SALA_STUB(name) \
  void name(void) {}

SALA_STUB(_Unwind_Backtrace)
SALA_STUB(_Unwind_DeleteException)
SALA_STUB(_Unwind_FindEnclosingFunction)
SALA_STUB(_Unwind_ForcedUnwind)
SALA_STUB(_Unwind_GetCFA)
SALA_STUB(_Unwind_GetDataRelBase)
SALA_STUB(_Unwind_GetGR)
SALA_STUB(_Unwind_GetIP)
SALA_STUB(_Unwind_GetIPInfo)
SALA_STUB(_Unwind_GetLanguageSpecificData)
SALA_STUB(_Unwind_GetRegionStart)
SALA_STUB(_Unwind_GetTextRelBase)
SALA_STUB(_Unwind_RaiseException)
SALA_STUB(_Unwind_Resume)
SALA_STUB(_Unwind_Resume_or_Rethrow)
SALA_STUB(_Unwind_SetGR)
SALA_STUB(_Unwind_SetIP)
