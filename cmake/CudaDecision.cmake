# Turns CCP_FAST_CUDA into a decision, made once per configuration and recorded in the library:
# CCP_CUDA_MISSING says in words why there are no CUDA kernels (ccp_fast.info() repeats it).
#
# AUTO builds whatever can be built and never fails, ON fails when it cannot build them, OFF does not look.
# No GPU and no driver are asked for: kernels are often built on another machine than the one that runs them.
set(CCP_FAST_CUDA AUTO CACHE STRING "Build the CUDA kernels: AUTO, ON or OFF")
set_property(CACHE CCP_FAST_CUDA PROPERTY STRINGS AUTO ON OFF)

set(_no_kernels_yet "this release of ccp_fast has no CUDA kernels yet")
if(CCP_FAST_CUDA STREQUAL "OFF")
  set(CCP_CUDA_MISSING "it was built with CCP_FAST_CUDA=OFF, and ${_no_kernels_yet}")
elseif(CCP_FAST_CUDA STREQUAL "AUTO")
  set(CCP_CUDA_MISSING "${_no_kernels_yet}")
elseif(CCP_FAST_CUDA STREQUAL "ON")
  find_program(_nvcc nvcc HINTS ENV CUDACXX ENV CUDA_HOME ENV CUDA_PATH PATH_SUFFIXES bin NO_CACHE)
  if(NOT _nvcc)
    message(FATAL_ERROR "CCP_FAST_CUDA=ON needs nvcc, and it is neither on PATH nor in CUDA_HOME: "
                        "install the CUDA toolkit, or build with CCP_FAST_CUDA=AUTO")
  endif()
  message(FATAL_ERROR "CCP_FAST_CUDA=ON cannot be met: ${_no_kernels_yet}; build with CCP_FAST_CUDA=AUTO")
else()
  message(FATAL_ERROR "CCP_FAST_CUDA: expected AUTO, ON or OFF, got ${CCP_FAST_CUDA}")
endif()
message(STATUS "CUDA kernels: not built, ${CCP_CUDA_MISSING}")
