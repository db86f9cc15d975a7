// Package qcow2 knows disk images. A disk image is a chain of qcow2 files in layers: disk/000.qcow2, the base, and for each step one more that has what the
// step has changed. Each names the one below it by that name, so the bytes do not depend on where they lie, and whoever pulls the image has a
// directory that qemu-img understands.
//
// Layers are hostile: no link is followed, nothing but a regular file is opened, and of a header nothing is accepted that leads QEMU to another
// file. QEMU is told of each file by obx all the same. The files themselves are written by qemu-img, which is looked for in PATH.
//
// The package refuses to know machines, and what is on a disk.
package qcow2
