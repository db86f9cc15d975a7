// Package keys says what a build is: its stages and steps, and the key of each.
//
// A key is a pure function of a spec, of the platform, of the digests of base images, and of the files that are copied.
// So all keys of a build are known before anything runs or is pulled. The package reads files only through the fs.FS,
// and names only through the Resolver, that it is given. It knows nothing of caches, layers, sandboxes or secrets.
//
// # Input keys and content keys
//
// A copy from another build is keyed by the key of that build and the paths: no root file system is needed to look it up.
// That is its input key, [Step].Key. When the build has been run or pulled, its files can be hashed ([HashSources]), and
// [Step.ContentKey] gives the key that the copy has by content, and from it that of each later step. A copy by content
// has the same key wherever the files come from. Steps that depend on no copy from a build have one key for both.
//
// # The format obx/1
//
// A key is the SHA-256 of a preimage: a canonical S-expression. Elements of a list are separated by one space, and
// nothing else is between them. An atom of one or more of the bytes
//
//	a-z A-Z 0-9 + - . / : = @ _ % , ~
//
// stands for itself. Any other atom is in double quotes, in which \" and \\ are those characters, \n is a newline and \t a
// tab, and any other byte below 0x20 or above 0x7e is \x and two lower-case hexadecimal digits. So a preimage is ASCII, and
// no atom has two spellings.
//
// A preimage begins with the format, then the operation with its semantics number, which is raised when the same
// operation may give other files than before. Fields follow, in this order; square brackets mark those that are left
// out when they have their default, so that a field that is added later changes no old key:
//
//		(obx/1 base/1 [(digest DIGEST)] (os OS) (arch ARCH) [(variant V)] [(os.version V)] [(salt SALT)])
//		(obx/1 run/1 (parent KEY) [(shell ARG...)] (command COMMAND) [(workdir DIR)] [(user ...)]
//		    [(env (NAME VALUE)...)] [(network NAME...)] [(secrets (ID TARGET)...)] [(caches (ID TARGET)...)])
//		(obx/1 copy/1 (parent KEY) [(user ...)] (dst DST) (files ENTRY...))
//		(obx/1 copy/1 (parent KEY) [(user ...)] (dst DST) (from KEY) (src PATH...) [(exclude NAME...)])
//
//	  - digest is that of the platform's manifest, never of an index; scratch has none. The platform is the image's, spelled
//	    by containerd's rules (aarch64 is arm64, arm64 has no variant v8, amd64 no v1, arm without variant is v7).
//	    os.version counts on Windows only.
//	  - parent is the key of the step before, or of the base. KEYs are 64 hexadecimal digits.
//	  - The default shell is /usr/bin/env bash -c, the default workdir /, the default user (user 0 0); for Windows they are
//	    cmd /S /C, C:/ and (user ContainerAdministrator). The platform is known from the base.
//	  - workdir is text: a new one replaces the old if it is absolute, else it is joined to it by a slash unless there is
//	    one. It is not normalised, since a command can see how it is spelled.
//	  - env has the spec's own variables, each once, sorted by the bytes of the name. The base's are implied by its digest.
//	    On Windows, names that differ in case only are one variable, with the newest spelling.
//	  - Secrets and caches are in the order of the spec. Secret values, contents of caches and buildkit_options are not in
//	    the key.
//	  - dst is absolute (joined to the workdir as a workdir is), without empty and "." components; it ends in / exactly if
//	    the spec's does. The root without a slash is "/.". For Windows, \ is / and the drive letter is upper case.
//	  - The first form of copy gives its sources by content, the second by the key of the last step (or the base) of a
//	    build. src has the cleaned paths, without empty and "." components, and "." for all; exclude is sorted, each name
//	    once.
//
// An ENTRY is one file, by its base name ("" for the source "."):
//
//	(file NAME SHA256 [x])     a regular file; x if any execute bit is set, never for Windows
//	(link NAME TARGET)         a symbolic link
//	(dir NAME SHA256)          a directory, collapsed
//	(dir NAME (ENTRY...))      the same directory, expanded: entries sorted by the bytes of their names
//
// The SHA256 of a directory is that of its listing, the text (tree/1 ENTRY...) with the entries in that same order and with
// the directories among them collapsed.
//
// The key hashes the preimage with all directories collapsed. A preimage that is kept may have any of them expanded: that
// changes neither its key nor what [Sum] makes of it, so a key can be recomputed from its preimage alone, and a copy of
// ten thousand files can be kept in full where there is room (to say which file has changed, [Diff]) and in a hundred
// bytes where there is not ([Collapse]). The alternative, to fix in the format how much is expanded, would have every
// reader carry a megabyte or none explain a change.
//
// testdata/vectors.txt has preimages and keys of builds that use every field. Changing one is changing the format's
// version.
package keys
