/* Any CPU: the compiler's vectors of four. */
#define KERNEL kernel_plain
#define KERNEL_NAME "plain"
#include "block.h"
