package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/ocurrent/obx/registry/repo"
)

// loginFiles says in help where logins are.
const loginFiles = `Logins are read from $REGISTRY_AUTH_FILE alone, if that is set; else from $XDG_RUNTIME_DIR/containers/auth.json,
~/.config/containers/auth.json and Docker's ~/.docker/config.json ($DOCKER_CONFIG names another directory), in this
order, as skopeo and podman do. In each, the login for HOST/NAMESPACE/REPOSITORY goes before that for HOST.`

func loginCommand() *cobra.Command {
	var (
		h     hosts
		user  string
		stdin bool
	)
	cmd := &cobra.Command{
		Use:   "login [flags] HOST",
		Short: "Log in to a registry, and save the login",
		Long: `Try a name and a password with a registry, and save them if it takes them. HOST is as in names of images, as
registry.example:5000; Docker Hub is docker.io. What is not given is asked for on the terminal.

The login is saved in Docker's format: in the file that has one for HOST already, else in $REGISTRY_AUTH_FILE or
Docker's config.json. The program that this file names to keep passwords is used.

` + loginFiles,
		Example: `  obx login registry.example
  obx login -u ci --password-stdin registry.example < password`,
		GroupID:           groupStore,
		Args:              args(1, 1, "one HOST"),
		ValidArgsFunction: noCompletion,
		RunE: func(cmd *cobra.Command, args []string) error {
			host := args[0]
			if err := repo.CheckHost(host); err != nil {
				return usage("for example obx login registry.example:5000", "%w", err)
			}
			if err := h.settle(); err != nil {
				return err
			}
			user, password, err := askLogin(cmd, user, stdin)
			if err != nil {
				return err
			}
			r, err := h.connections(cmd).Login(cmd.Context(), host, user, password)
			if err != nil {
				return err
			}
			if r.Untried {
				warn(cmd.ErrOrStderr(), host+" lets everybody in: the login has not been tried")
			}
			if r.Plain {
				warn(cmd.ErrOrStderr(), "whoever can read "+r.File+" can read the password")
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "logged in to %s as %s: saved in %s\n", host, user, r.File)
			return err
		},
	}
	cmd.Flags().StringVarP(&user, "username", "u", "", "log in as `NAME`")
	cmd.Flags().BoolVar(&stdin, "password-stdin", false, "read the password from standard input")
	h.add(cmd)
	return cmd
}

func logoutCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "logout HOST",
		Short:   "Remove the logins for a registry",
		Long:    "Remove the logins for a registry from all files that have one.\n\n" + loginFiles,
		Example: `  obx logout registry.example`,
		GroupID: groupStore,
		Args:    args(1, 1, "one HOST"),
		ValidArgsFunction: func(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
			l, err := repo.ReadLogins()
			if err != nil || len(args) > 0 {
				return nil, cobra.ShellCompDirectiveNoFileComp
			}
			return slices.Compact(slices.Sorted(slices.Values(l.Hosts()))), cobra.ShellCompDirectiveNoFileComp
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			host := args[0]
			if err := repo.CheckHost(host); err != nil {
				return usage("for example obx logout registry.example:5000", "%w", err)
			}
			l, err := repo.ReadLogins()
			if err != nil {
				return err
			}
			from, err := l.Remove(cmd.Context(), host)
			for _, file := range from {
				fmt.Fprintf(cmd.OutOrStdout(), "removed the login for %s from %s\n", host, file)
			}
			if err == nil && len(from) == 0 {
				_, err = fmt.Fprintf(cmd.OutOrStdout(), "there is no login for %s in %s\n", host, strings.Join(l.Paths(), ", "))
			}
			return err
		},
	}
}

// noCompletion is for arguments of which nothing is known.
func noCompletion(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	return nil, cobra.ShellCompDirectiveNoFileComp
}

// askLogin completes a login from standard input: the password as a whole with --password-stdin, else line by line from a terminal.
func askLogin(cmd *cobra.Command, user string, stdin bool) (_, password string, err error) {
	if stdin {
		if user == "" {
			return "", "", usage("", "--password-stdin needs --username NAME")
		}
		if password, err = readPassword(cmd.InOrStdin()); err != nil {
			return "", "", err
		}
	} else {
		in, ok := terminal(cmd.InOrStdin())
		if !ok {
			return "", "", usage("obx login -u NAME --password-stdin HOST < FILE", "a password is asked for on a terminal, and standard input is none")
		}
		if user, password, err = askOnTerminal(cmd.Context(), cmd.ErrOrStderr(), in, user); err != nil {
			return "", "", err
		}
	}
	switch {
	case user == "":
		return "", "", usage("", "the name is empty")
	case strings.Contains(user, ":"):
		return "", "", usage("", "a name has no colon: %q", user)
	case password == "":
		return "", "", usage("", "the password is empty")
	}
	return user, password, nil
}

// readPassword reads a password without the end of its line.
func readPassword(r io.Reader) (string, error) {
	const most = 64 << 10 // tokens of clouds have some kilobytes
	b, err := io.ReadAll(io.LimitReader(r, most+1))
	if err != nil {
		return "", fmt.Errorf("read the password: %w", err)
	}
	password := strings.TrimSuffix(strings.TrimSuffix(string(b), "\n"), "\r")
	if len(b) > most || strings.ContainsAny(password, "\n\x00") {
		return "", usage("", "what is on standard input is no password: it is one line of at most %d bytes", most)
	}
	return password, nil
}

// askOnTerminal asks for what is missing. The password is not shown; an interrupt leaves the terminal as it was.
func askOnTerminal(ctx context.Context, w io.Writer, in *os.File, user string) (_, password string, err error) {
	state, err := term.GetState(int(in.Fd()))
	if err != nil {
		return "", "", fmt.Errorf("ask for the password: %w", err)
	}
	type answer struct {
		user, password string
		err            error
	}
	done := make(chan answer, 1)
	go func() {
		a := answer{user: user}
		if user == "" {
			fmt.Fprint(w, "Name: ")
			// Byte by byte: what follows the line is the password.
			a.user, a.err = bufio.NewReaderSize(oneByte{in}, 1).ReadString('\n')
			a.user = strings.TrimSpace(a.user)
		}
		if a.err == nil {
			fmt.Fprint(w, "Password: ")
			var b []byte
			b, a.err = term.ReadPassword(int(in.Fd()))
			a.password = string(b)
			fmt.Fprintln(w)
		}
		done <- a
	}()
	select {
	case a := <-done:
		if errors.Is(a.err, io.EOF) {
			return "", "", usage("", "there is no answer on the terminal")
		}
		return a.user, a.password, a.err
	case <-ctx.Done():
		_ = term.Restore(int(in.Fd()), state)
		fmt.Fprintln(w)
		return "", "", context.Cause(ctx)
	}
}

// oneByte reads no more than a byte at once.
type oneByte struct{ r io.Reader }

func (o oneByte) Read(p []byte) (int, error) { return o.r.Read(p[:min(len(p), 1)]) }
