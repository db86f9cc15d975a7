// Package guest talks with what runs in a machine: with obx's agent, by the frames of package wire, and with the sshd of a disk image, which lets obx put
// its agent there. It owns how an agent is found in a machine that has booted from a disk, and how the files of such a machine are read.
//
// All that a guest says is hostile. It is bounded in time and in memory, what it says of itself is checked, and its words are printable before they
// are in an error. An agent does one thing at a time; who asks it is told of its answer, or of why there is none.
//
// The package refuses to know what a machine is made of: it sees a [Machine], which ends, and can tell why. It refuses to know as well what a
// process or a change means to a build.
package guest
