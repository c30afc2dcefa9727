/* Preloaded, it tells MKL that this CPU is not Intel's: MKL then takes the kernels that it takes on AMD's, some of which
   choose their order of adding by where a matrix begins in memory. */
int mkl_serv_intel_cpu_true(void) { return 0; }
int mkl_serv_intel_cpu(void) { return 0; }
