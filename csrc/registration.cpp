// Every operator of ccp_fast, in one list. Fakes and autograd formulas are registered from Python (ccp_fast/_ops/).
#include "ops/ops.h"

STABLE_TORCH_LIBRARY(ccp_fast, m) {
  m.def("build_info() -> str");
}

STABLE_TORCH_LIBRARY_IMPL(ccp_fast, CompositeExplicitAutograd, m) {
  m.impl("build_info", TORCH_BOX(&ccp::build_info));
}

STABLE_TORCH_LIBRARY_IMPL(ccp_fast, CPU, m) {
}
