// Package spec is the language that obx builds are written in: OBuilder's S-expressions.
//
// It owns the text (Parse, Format), the tree (Spec, Stage and the operations), what can be said about a tree without
// looking at any file (Check), and the two renderings for people: log headings (Heading) and Dockerfiles (Dockerfile).
// It knows nothing of keys, images or sandboxes, does no I/O, and imports nothing beyond the standard library.
//
// # Grammar
//
// A spec is one S-expression:
//
//	spec  := ( build* (from IMAGE) op* )
//	build := (build NAME spec)                             its files are there for (copy (from (build NAME)) ...)
//	op    := (comment TEXT)                                printed in the log
//	       | (workdir DIR)                                 relative to the present one
//	       | (shell ARG...)                                the words that commands are appended to
//	       | (env NAME VALUE)                              nothing is interpolated
//	       | (user (uid N) (gid N)) | (user (name NAME))   the latter on Windows
//	       | (run (shell COMMAND) [(cache mount...)] [(network NETWORK...)] [(secrets mount...)])
//	       | (copy (src PATH...) (dst PATH) [(from context) | (from (build NAME))] [(exclude NAME...)])
//	mount := (ID (target PATH) [(buildkit_options ((KEY VALUE)...))])
//
// The fields of run, copy, user and mount come in any order, each at most once. A secret without a target is found at
// /run/secrets/ID.
//
// A copy sees the builds of its own stage and those that come earlier in the stages around it; of two with one name,
// the nearest and latest.
//
// An atom is a bare word or a string in double quotes. Strings hold any bytes, newlines too, and the escapes
// \n \t \r \b \\ \" \' \065 (decimal) and \x41; a backslash before any other character stands for itself. A backslash at
// the end of a line continues the string at the first non-blank character of the next line. Comments are ; to the end of
// the line, #| to |# (they nest), and #; for the S-expression that follows.
//
// # Errors
//
// Parse reports the mistakes of grammar, Check those of meaning, each all at once and in the order of the text, as an
// ErrorList of FILE:LINE:COL: MESSAGE. After mistakes the reader and the parser go on: ParsePartial gives what they understood, so
// that Check can look at that too. A second reading guesses by the layout where a parenthesis or quote is missing.
package spec
