# ccp_add_cpu_kernels(<target> <source>...): compiles each CPU kernel source once per instruction set and adds all of
# them to the target. Every copy lives in a namespace of its own (CCP_CAPABILITY), and csrc/kernels/cpu/dispatch.h picks
# one at run time, so a single binary is fast on AVX-512 and still starts on any x86-64. Elsewhere only `portable` exists.
#
# No fast-math: NaN and infinity mean what they should. errno and traps are not used, so sqrt may vectorise.
# Debug builds stay unoptimised: for a debugger, and to compile in seconds.
set(CCP_KERNEL_FLAGS $<$<NOT:$<CONFIG:Debug>>:-O3> -fno-math-errno -fno-trapping-math -ffp-contract=fast)

set(CCP_CAPABILITIES portable)
if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
  list(APPEND CCP_CAPABILITIES avx2 avx512)
endif()
set(CCP_FLAGS_portable "")
set(CCP_FLAGS_avx2 -mavx2 -mfma -mf16c)
set(CCP_FLAGS_avx512 -mavx512f -mavx512dq -mavx512bw -mavx512vl -mfma -mf16c -mprefer-vector-width=512)

function(ccp_add_cpu_kernels target)
  foreach(capability IN LISTS CCP_CAPABILITIES)
    set(objects ${target}_${capability})
    add_library(${objects} OBJECT ${ARGN})
    target_include_directories(${objects} PRIVATE "${PROJECT_SOURCE_DIR}/csrc")
    target_compile_definitions(${objects} PRIVATE CCP_CAPABILITY=${capability})
    target_compile_options(${objects} PRIVATE -Wall -Wextra -Wno-psabi ${CCP_KERNEL_FLAGS} ${CCP_FLAGS_${capability}})
    target_sources(${target} PRIVATE $<TARGET_OBJECTS:${objects}>)
  endforeach()
  target_compile_definitions(${target} PRIVATE
    $<$<IN_LIST:avx512,${CCP_CAPABILITIES}>:CCP_HAVE_X86_CAPABILITIES>)
endfunction()
