# A source per loss of csrc/losses/registry.h with its CUDA kernels: nvcc works on them side by side, and a new loss needs
# no line here. A second list has those for Hopper alone.
function(ccp_loss_instances csrc folder out out_hopper)
  file(READ "${csrc}/losses/registry.h" registry)
  set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS "${csrc}/losses/registry.h")
  string(REGEX MATCHALL "  X\\([a-z0-9_]+," lines "${registry}")
  foreach(line IN LISTS lines)
    string(REGEX REPLACE "  X\\(([a-z0-9_]+)," "\\1" loss "${line}")
    file(CONFIGURE OUTPUT "${folder}/${loss}.cu"
      CONTENT "#define CCP_LOSS k_${loss}\n#include \"kernels/cuda/similarity_loss/one_loss.cuh\"\n" @ONLY)
    list(APPEND sources "${folder}/${loss}.cu")
    file(CONFIGURE OUTPUT "${folder}/hopper/${loss}.cu"
      CONTENT "#define CCP_LOSS k_${loss}\n#include \"kernels/cuda/similarity_loss/hopper/one_loss.cuh\"\n" @ONLY)
    list(APPEND hopper "${folder}/hopper/${loss}.cu")
  endforeach()
  set(${out} ${sources} PARENT_SCOPE)
  set(${out_hopper} ${hopper} PARENT_SCOPE)
endfunction()
