//go:build !linux

package cas

import "errors"

func insideHelper([]string) error { return errors.New("only Linux has mount namespaces") }
