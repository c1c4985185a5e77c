# Finds the headers and libtorch_cpu of an installed torch without importing it (an import costs seconds, and
# find_package(Torch) fails with a CUDA wheel on a machine without CUDA).
#
# Looked up in this order: $CCP_FAST_TORCH_DIR, the interpreter's own sys.path, then the interpreter's site-packages
# (which pip's build isolation hides from sys.path).
#
# Defines TorchHeaders::TorchHeaders, TorchHeaders_VERSION and TorchHeaders_HAS_CUDA.
set(_minimum_torch 2.11) # the first with all of the stable ABI that is used here
find_package(Python REQUIRED COMPONENTS Interpreter)

if(DEFINED ENV{CCP_FAST_TORCH_DIR})
  set(_torch_dir "$ENV{CCP_FAST_TORCH_DIR}")
  if(NOT EXISTS "${_torch_dir}/version.py")
    message(FATAL_ERROR "CCP_FAST_TORCH_DIR: expected the folder of an installed torch (it has a version.py), "
                        "got ${_torch_dir}")
  endif()
else()
  execute_process(
    COMMAND "${Python_EXECUTABLE}" -c
      "import importlib.util as u; s = u.find_spec('torch'); print(s.submodule_search_locations[0] if s else '')"
    OUTPUT_VARIABLE _torch_dir OUTPUT_STRIP_TRAILING_WHITESPACE)
  foreach(_site IN ITEMS "${Python_SITEARCH}" "${Python_SITELIB}")
    if(NOT EXISTS "${_torch_dir}/version.py")
      set(_torch_dir "${_site}/torch")
    endif()
  endforeach()
  if(NOT EXISTS "${_torch_dir}/version.py")
    message(FATAL_ERROR "ccp_fast is compiled against torch, and ${Python_EXECUTABLE} has none: "
                        "install torch >= ${_minimum_torch} first, or set CCP_FAST_TORCH_DIR to its folder")
  endif()
endif()

file(STRINGS "${_torch_dir}/version.py" _line REGEX "^__version__")
string(REGEX MATCH "[0-9]+\\.[0-9]+(\\.[0-9]+)?" TorchHeaders_VERSION "${_line}")
if(TorchHeaders_VERSION VERSION_LESS _minimum_torch)
  message(FATAL_ERROR "ccp_fast needs torch >= ${_minimum_torch}, found ${TorchHeaders_VERSION} in ${_torch_dir}: "
                      "upgrade torch first")
endif()

find_path(TorchHeaders_INCLUDE_DIR torch/csrc/stable/library.h
  PATHS "${_torch_dir}/include" NO_DEFAULT_PATH NO_CACHE)
find_library(TorchHeaders_LIBRARY torch_cpu PATHS "${_torch_dir}/lib" NO_DEFAULT_PATH NO_CACHE)
if(EXISTS "${_torch_dir}/lib/libtorch_cuda.so")
  set(TorchHeaders_HAS_CUDA ON)
else()
  set(TorchHeaders_HAS_CUDA OFF)
endif()

include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(TorchHeaders
  REQUIRED_VARS TorchHeaders_LIBRARY TorchHeaders_INCLUDE_DIR
  VERSION_VAR TorchHeaders_VERSION
  REASON_FAILURE_MESSAGE "the torch in ${_torch_dir} has no C++ headers or no libtorch_cpu: reinstall torch")

if(TorchHeaders_FOUND AND NOT TARGET TorchHeaders::TorchHeaders)
  add_library(TorchHeaders::TorchHeaders INTERFACE IMPORTED)
  set_target_properties(TorchHeaders::TorchHeaders PROPERTIES
    INTERFACE_INCLUDE_DIRECTORIES "${TorchHeaders_INCLUDE_DIR}"
    # The stable ABI of torch 2.11: the library also loads into every later torch.
    INTERFACE_COMPILE_DEFINITIONS "TORCH_TARGET_VERSION=0x020b000000000000"
    INTERFACE_LINK_LIBRARIES "${TorchHeaders_LIBRARY}")
endif()
