// What the starters know of where things are; see starter_linux.go.
#define AREA     0x200000
#define AREASIZE 0x1010000
#define ANSWER   0x200000
#define MESSAGE  0x200040
#define CONTROL  0x100
#define CLONE    0x200080
#define CALLS    0x201000
#define SOCKET   3
#define AREAFD   5

// What follows the last instruction.
#define END1 0x2078626f
#define END2 0x20646e65
