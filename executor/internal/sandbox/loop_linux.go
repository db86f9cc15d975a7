//go:build amd64 || arm64 || riscv64

package sandbox

import (
	"bytes"
	"errors"
)

// loop makes the system calls of a program, one after the other. It is never called: its instructions, which need nothing beside the
// program, are copied into each.
//
// A call is eight words: its number, six arguments, and the errors that do not matter, a bit each. The last is for errors below 64 only. After
// any other error the loop writes three words to the report: the error, the call's address and all errors that did not matter; then it exits.
//
//lint:ignore U1000 loopAddress is where it is used
func loop()

// loopAddress is where loop's instructions are.
func loopAddress() *[maxLoop]byte

const (
	maxLoop = 1024       // more than any loop is long
	loopEnd = "obx end " // follows the loop's last instruction
)

// loopText copies the loop's instructions.
func loopText() ([]byte, error) {
	var text []byte
	from := loopAddress()
	for i := range maxLoop { // not all at once: this program's text may end before
		text = append(text, from[i])
		if t, ok := bytes.CutSuffix(text, []byte(loopEnd)); ok {
			return t, nil
		}
	}
	return nil, errors.New("the loop of a container's first program has no end")
}
