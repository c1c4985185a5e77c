# Enables CUDA as CudaDecision.cmake decided, and defines
#   ccp_add_cuda_kernels(<target> <objects> <source>...): compiles kernel sources (*.cu) as a library of objects by that
#   name, and adds them to the target.
# CCP_HAVE_HOPPER tells whether sm_90a, which alone has wgmma, is among the architectures.
#
# To be included before any target exists: enabling a language sets what later targets start from.
set(CMAKE_CUDA_STANDARD 17)
set(CMAKE_CUDA_STANDARD_REQUIRED ON)
set(CMAKE_CUDA_EXTENSIONS OFF)
set(CMAKE_CUDA_VISIBILITY_PRESET hidden)

if(NOT CCP_CUDA_MISSING)
  set(ENV{CUDACXX} "${CCP_NVCC}")
  if(CCP_FAST_CUDA STREQUAL "AUTO") # a toolkit that does not get on with this C++ compiler is no reason to fail
    include(CheckLanguage)
    check_language(CUDA)
    if(NOT CMAKE_CUDA_COMPILER)
      set(CCP_CUDA_MISSING "${CCP_NVCC} does not compile with this C++ compiler, and CCP_FAST_CUDA=ON shows its message")
      message(STATUS "CUDA kernels: not built, ${CCP_CUDA_MISSING}")
    endif()
  endif()
endif()

if(NOT CCP_CUDA_MISSING)
  enable_language(CUDA)
  find_package(CUDAToolkit REQUIRED)

  # As info() tells them: "80,90a,120+PTX".
  set(CCP_CUDA_ARCHITECTURES "${CMAKE_CUDA_ARCHITECTURES}")
  list(TRANSFORM CCP_CUDA_ARCHITECTURES REPLACE "^([0-9]+a?)$" "\\1+PTX")
  list(TRANSFORM CCP_CUDA_ARCHITECTURES REPLACE "-virtual$" "+PTX")
  list(TRANSFORM CCP_CUDA_ARCHITECTURES REPLACE "-real$" "")
  string(REPLACE ";" "," CCP_CUDA_ARCHITECTURES "${CCP_CUDA_ARCHITECTURES}")

  set(CCP_HAVE_HOPPER OFF)
  if(CMAKE_CUDA_ARCHITECTURES MATCHES "(^|;)90a")
    set(CCP_HAVE_HOPPER ON)
  endif()
endif()

# The objects are a target of their own, which does not see torch's headers: kernels take pointers and sizes.
function(ccp_add_cuda_kernels target objects)
  add_library(${objects} OBJECT ${ARGN})
  target_include_directories(${objects} PRIVATE "${PROJECT_SOURCE_DIR}/csrc")
  target_compile_definitions(${objects} PRIVATE $<$<BOOL:${CCP_HAVE_HOPPER}>:CCP_HAVE_HOPPER>)
  # Registers that spill to memory cost more than a smaller tile; ptxas tells, and in CI it fails.
  target_compile_options(${objects} PRIVATE -Xcompiler=-Wall,-Wextra -Xptxas=-warn-spills,-warn-lmem-usage)
  if(CMAKE_COMPILE_WARNING_AS_ERROR) # CMake itself sees to cudafe alone
    target_compile_options(${objects} PRIVATE -Xcompiler=-Werror -Xptxas=-Werror)
  endif()
  target_sources(${target} PRIVATE $<TARGET_OBJECTS:${objects}>)
endfunction()
