/* Any CPU: a vector of 16 samples takes four of the compiler's vectors. */
#define ISA_KERNEL kernel_plain
#define ISA_NAME "plain"
#include "items.h"
