//go:build amd64 || arm64 || riscv64

package sandbox

import (
	"bytes"
	"errors"
)

// starterCode is all instructions of a starter. It is never called: they need nothing beside the area (see starter_linux.go), and are copied into a file.
//
// It maps the area. Then, for each message that comes by its socket, it clones itself as the area says. The parent goes on when the child has executed
// another program or has ended, writes the area's first four words to the socket, and closes the descriptors that came with the message. The child
// makes the system calls of the list in the area, one after the other. A call is eight words: its number, six arguments, and the errors that do not
// matter, a bit each. The last is for errors below 64 only. After any other error the child puts three words into the area, behind the one that its
// parent fills: the error, the call's address and all errors that did not matter; then it exits.
//
// Executed with an argument it does none of that, but makes the calls of the list itself: see Exec.
//
// Nothing is on the stack, since parent and child have the same.
//
//lint:ignore U1000 starterAddress is where it is used
func starterCode()

// starterAddress is where starter's instructions are.
func starterAddress() *[maxStarter]byte

const (
	maxStarter = 1024       // more than any starter is long
	starterEnd = "obx end " // follows the last instruction
)

// starterText copies the instructions.
func starterText() ([]byte, error) {
	var text []byte
	from := starterAddress()
	for i := range maxStarter { // not all at once: this program's text may end before
		text = append(text, from[i])
		if t, ok := bytes.CutSuffix(text, []byte(starterEnd)); ok {
			return t, nil
		}
	}
	return nil, errors.New("the instructions of a starter have no end")
}
