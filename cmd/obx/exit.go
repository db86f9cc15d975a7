package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/ocurrent/obx/cmd/obx/internal/safe"
	"github.com/ocurrent/obx/executor/build"
	"github.com/ocurrent/obx/keys"
	"github.com/ocurrent/obx/keys/spec"
)

// Exit statuses, as `obx help` documents them.
const (
	statusFailed         = 1
	statusUsage          = 2
	statusInfrastructure = 3
	statusInterrupted    = 130
)

// errInterrupted is why a context ends when the user has asked obx to stop.
var errInterrupted = errors.New("interrupted")

// A usageError is a call that is wrong.
type usageError struct {
	err  error
	hint string // may be empty
}

func (e *usageError) Error() string { return e.err.Error() }
func (e *usageError) Unwrap() error { return e.err }

func usage(hint, format string, args ...any) error {
	return &usageError{err: fmt.Errorf(format, args...), hint: hint}
}

// A failedError is a command inside a sandbox that failed, as a step can.
type failedError struct{ error }

func (e failedError) Unwrap() error { return e.error }

func failed(format string, args ...any) error { return failedError{fmt.Errorf(format, args...)} }

// A silent error is a status for which everything is said already.
type silent int

func (s silent) Error() string { return fmt.Sprintf("exit status %d", int(s)) }

// report prints an error as its kind wants it, and gives the exit status.
func report(w io.Writer, err error) int {
	var (
		status silent
		wrong  *usageError
		step   *build.StepError
		inside failedError
		list   spec.ErrorList
		one    *spec.Error
		base   *keys.BaseError
	)
	switch {
	case err == nil:
		return 0
	case errors.As(err, &status):
		return int(status)
	case errors.As(err, &list):
		for _, one := range list {
			fmt.Fprintln(w, safe.Message(one.Error()))
		}
		return statusUsage
	case errors.As(err, &one):
		fmt.Fprintln(w, safe.Message(one.Error()))
		return statusUsage
	case errors.As(err, &wrong):
		say(w, err.Error())
		if wrong.hint != "" {
			fmt.Fprintln(w, "  "+safe.Message(wrong.hint))
		}
		return statusUsage
	}
	say(w, err.Error())
	switch {
	case errors.As(err, &base):
		return statusUsage
	case errors.Is(err, errInterrupted), errors.Is(err, context.Canceled):
		return statusInterrupted
	case errors.As(err, &step), errors.As(err, &inside):
		return statusFailed
	}
	return statusInfrastructure
}

// say prints what obx has to say beside a command's output.
func say(w io.Writer, msg string) { fmt.Fprintln(w, "obx:", safe.Message(msg)) }

// warn prints a warning.
func warn(w io.Writer, msg string) { say(w, "warning: "+msg) }

// interruptible is a context that SIGINT and SIGTERM end, so that the command can end in order. A second signal exits
// at once: steps die with obx, and what is saved is whole at any moment.
func interruptible() (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(context.Background())
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	done := make(chan struct{})
	go func() {
		for range 2 {
			select {
			case <-done:
				return
			case <-signals:
			}
			if ctx.Err() != nil {
				os.Exit(statusInterrupted)
			}
			cancel(errInterrupted)
		}
	}()
	return ctx, func() {
		signal.Stop(signals)
		close(done)
		cancel(nil)
	}
}
