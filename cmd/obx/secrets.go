package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"

	"github.com/ocurrent/obx/executor/build"
	"github.com/ocurrent/obx/keys"
	"github.com/ocurrent/obx/keys/spec"
)

const secretHint = "for example --secret token=token.txt, or --secret token=env:TOKEN"

// parseSecrets reads --secret. A value is read when the first step needs it, and once.
func parseSecrets(flags []string) (map[string]build.Secret, error) {
	secrets := map[string]build.Secret{}
	for _, f := range flags {
		id, from, env, err := parseSecret(f)
		if err != nil {
			return nil, err
		}
		if _, ok := secrets[id]; ok {
			return nil, usage("", "--secret %s: given twice", id)
		}
		if env {
			value, ok := os.LookupEnv(from)
			if !ok {
				return nil, usage("", "--secret %s: there is no environment variable %s", id, from)
			}
			secrets[id] = func() ([]byte, error) { return []byte(value), nil }
			continue
		}
		switch info, err := os.Stat(from); {
		case errors.Is(err, fs.ErrNotExist):
			hint := ""
			if id == "id" {
				hint = "as docker writes it, it is --secret id=ID,src=FILE"
			}
			return nil, usage(hint, "--secret %s: there is no file %s", id, from)
		case err != nil:
			return nil, usage("", "--secret %s: %w", id, err)
		case info.IsDir():
			return nil, usage("", "--secret %s: %s is a directory", id, from)
		}
		secrets[id] = sync.OnceValues(func() ([]byte, error) { return os.ReadFile(from) })
	}
	return secrets, nil
}

// parseSecret reads ID=FILE, ID:FILE, ID=env:VARIABLE, or docker's id=ID,src=FILE and id=ID,env=VARIABLE. from is a file, or with env a
// variable.
func parseSecret(f string) (id, from string, env bool, err error) {
	if id, from, env, ok := dockerSecret(f); ok {
		return id, from, env, nil
	}
	i := strings.IndexAny(f, "=:")
	if i <= 0 || i == len(f)-1 {
		return "", "", false, usage(secretHint, "--secret %s: not ID=FILE, ID:FILE or ID=env:VARIABLE", f)
	}
	id, from = f[:i], f[i+1:]
	if name, ok := strings.CutPrefix(from, "env:"); ok && f[i] == '=' {
		return id, name, true, nil
	}
	return id, from, false, nil
}

// dockerSecret reads the fields that docker build --secret takes. A file whose name is like them goes before.
func dockerSecret(f string) (id, from string, env, ok bool) {
	if !strings.Contains(f, ",") || isFile(f[strings.IndexAny(f, "=,")+1:]) {
		return "", "", false, false
	}
	fields := map[string]string{}
	for field := range strings.SplitSeq(f, ",") {
		key, value, _ := strings.Cut(field, "=")
		if key == "source" {
			key = "src"
		}
		if value == "" || !slices.Contains([]string{"id", "src", "env", "type"}, key) || fields[key] != "" {
			return "", "", false, false
		}
		fields[key] = value
	}
	id, from = fields["id"], fields["src"]
	switch {
	case fields["env"] != "":
		from, env = fields["env"], true
	case fields["type"] == "env":
		env = true
		if from == "" {
			from = id
		}
	}
	return id, from, env, id != "" && from != ""
}

// checkSecrets finds, before any step runs, the secrets that no --secret gives to steps that are going to run, and warns of those that
// are for no step. With before, only what leads to that step runs.
func (p *project) checkSecrets(ctx context.Context, before *keys.Step) error {
	given := p.builder.Secrets
	wanted := map[string]bool{}
	missing := false
	for _, s := range p.plan.Steps {
		if run, ok := s.Op.(*spec.Run); ok {
			for _, m := range run.Secrets {
				wanted[m.ID] = true
				missing = missing || given[m.ID] == nil
			}
		}
	}
	var unused []string
	for _, id := range slices.Sorted(maps.Keys(given)) {
		if !wanted[id] {
			unused = append(unused, id)
		}
	}
	if missing {
		if err := p.missingSecrets(ctx, before, unused); err != nil {
			return err
		}
	}
	for _, id := range unused {
		p.notices.warn(fmt.Sprintf("--secret %s: no step of %s asks for it%s", id, p.spec.File, spec.Suggest(id, slices.Sorted(maps.Keys(wanted)))))
	}
	return nil
}

// missingSecrets tells the secrets that are not given. A step whose result is known needs none.
func (p *project) missingSecrets(ctx context.Context, before *keys.Step, unused []string) error {
	b := *p.builder
	b.Events = nil // the run will tell
	steps, _, err := b.Status(ctx, p.plan)
	if err != nil {
		return err
	}
	var needed map[*keys.Step]bool
	if before != nil {
		needed = leadingTo(before)
	}
	var list spec.ErrorList
	for _, s := range steps {
		run, ok := s.Step.Op.(*spec.Run)
		if !ok || !s.Run || before != nil && !needed[s.Step] {
			continue
		}
		for _, m := range run.Secrets {
			if b.Secrets[m.ID] != nil {
				continue
			}
			msg := fmt.Sprintf("secret %s is not given: --secret %s=FILE or --secret %s=env:VARIABLE gives it", m.ID, m.ID, m.ID)
			if like := spec.Suggest(m.ID, unused); like != "" {
				msg = fmt.Sprintf("secret %s is not given%s No step asks for that one", m.ID, like)
			}
			list = append(list, &spec.Error{File: p.spec.File, Pos: m.Pos, Msg: msg})
		}
	}
	if len(list) > 0 {
		return list
	}
	return nil
}

// leadingTo are the steps that have to be done before one: the earlier ones of its stage, and all of the builds that such steps copy from.
func leadingTo(before *keys.Step) map[*keys.Step]bool {
	steps := map[*keys.Step]bool{}
	var add func([]*keys.Step)
	add = func(list []*keys.Step) {
		for _, s := range list {
			if !steps[s] {
				steps[s] = true
				if s.From != nil {
					add(s.From.Steps)
				}
			}
		}
	}
	add(before.Stage.Steps[:before.Index])
	return steps
}
