// Destroys the static objects of a library that is closed, as GCC's crtbeginS.o does in every library that GCC links.
// Without it the C library would do so at the end of the process, when their code has long been unmapped.

extern char __dso_handle;  // where a library begins, which the compiler names it by
void __cxa_finalize(void* library);

__attribute__((destructor)) static void destroy_static_objects(void) { __cxa_finalize(&__dso_handle); }
