// What the loops know of a program; see program_linux.go.
#define CALLS 0x200000
#define REPORT 3

// What follows the last instruction.
#define END1 0x2078626f
#define END2 0x20646e65
