// Package layerdisk serves directories as a disk that nobody has written. It owns two formats: EROFS, a file system for reading, of which it makes the
// metadata in memory, and NBD, the protocol by which the disk is read. What would be blocks of data are the files of the directories, read when
// somebody asks. So to show a layer costs a look at each inode, and no byte of disk.
//
// What reads is hostile, and gets the bytes of layers, zeros, or an error. Directories are hostile too: no link in them is followed, and files are
// opened beneath them. What was read of a Layer does not change; a Disk grows and shrinks while it is read.
//
// The package refuses to know what a machine is, what a layer means, and who has made it.
package layerdisk
