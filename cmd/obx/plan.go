package main

import (
	"errors"
	"fmt"
	"io"
	"text/tabwriter"

	"github.com/opencontainers/go-digest"
	"github.com/spf13/cobra"

	"github.com/ocurrent/obx/cmd/obx/internal/progress"
	"github.com/ocurrent/obx/executor/build"
	"github.com/ocurrent/obx/keys/spec"
)

func planCommand() *cobra.Command {
	var (
		in      inputs
		noCache bool
		rebuild []string
		asJSON  bool
		full    bool
	)
	cmd := &cobra.Command{
		Use:   "plan [flags] SPEC [DIR]",
		Short: "Show each step's key, where its result is, and what a run would do",
		Long: `Show each step's key, where its result is, and what a run would pull and execute. Nothing is run, pulled or made.

Steps are numbered from 1 in the order of the log. With --json: "bases" with the digests that their names were
resolved to, "steps", and sums; with the flags of obx run that decide what is built, the keys are those of the run.`,
		Example: `  obx plan build.sexp src
  obx plan --rebuild 3 build.sexp
  obx plan --json build.sexp | jq -r '.bases[].digest'`,
		GroupID:           groupBuild,
		Args:              args(1, 2, "SPEC [DIR]"),
		ValidArgsFunction: completeSpecDir,
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			p, err := in.open(cmd, args, true)
			if err != nil {
				return err
			}
			defer func() { err = errors.Join(err, p.Close()) }()
			if err := p.rebuild(rebuild); err != nil {
				return err
			}
			p.builder.NoCache = noCache
			steps, bases, err := p.builder.Status(cmd.Context(), p.plan)
			if err != nil {
				return err
			}
			view := viewPlan(p, steps, bases)
			if asJSON {
				return printJSON(cmd, view)
			}
			return view.print(cmd.OutOrStdout(), full)
		},
	}
	f := cmd.Flags()
	f.SortFlags = false
	f.BoolVar(&asJSON, "json", false, "print JSON")
	f.BoolVar(&full, "full", false, "print whole keys")
	addRebuild(cmd, &noCache, &rebuild)
	in.add(cmd)
	return cmd
}

// A planView is a plan as `obx plan --json` prints it.
type planView struct {
	Platform string     `json:"platform"`
	Bases    []baseView `json:"bases"`
	Steps    []stepView `json:"steps"`
	Hits     int        `json:"hits"`
	Runs     int        `json:"runs"`
	Pull     int64      `json:"pullBytes"` // -1 if it is not known
}

type baseView struct {
	Stage  string        `json:"stage,omitempty"`
	Image  string        `json:"image"`
	Ref    string        `json:"ref"`
	Digest digest.Digest `json:"digest,omitempty"`
	Key    string        `json:"key"`
	Where  string        `json:"where,omitempty"`
	Pull   int64         `json:"pullBytes,omitempty"`
}

type stepView struct {
	Step    int     `json:"step"`
	Stage   string  `json:"stage,omitempty"`
	Line    int     `json:"line,omitempty"`
	Workdir string  `json:"workdir"`
	Op      string  `json:"op"`
	Key     string  `json:"key"`
	Where   string  `json:"where,omitempty"`
	Run     bool    `json:"run"`
	Seconds float64 `json:"seconds,omitempty"`
	text    string
}

func viewPlan(p *project, steps []build.Status, bases []build.BaseStatus) planView {
	v := planView{Platform: platformString(p.plan.Platform), Bases: []baseView{}, Steps: []stepView{}}
	for _, b := range bases {
		s := b.Stage
		v.Bases = append(v.Bases, baseView{
			Stage: s.Name, Image: s.Spec.From.Image, Ref: s.Base.Ref, Digest: s.Base.Digest, Key: s.BaseKey.String(),
			Where: b.Where, Pull: b.Pull,
		})
	}
	// A base that several stages start from is pulled once.
	seen := map[string]bool{}
	for _, b := range v.Bases {
		if seen[b.Key] {
			continue
		}
		if b.Pull != 0 {
			seen[b.Key] = true
		}
		if b.Pull < 0 || v.Pull < 0 {
			v.Pull = -1
		} else {
			v.Pull += b.Pull
		}
	}
	for _, st := range steps {
		s := st.Step
		v.Steps = append(v.Steps, stepView{
			Step: s.Number, Stage: s.Stage.Name, Line: s.Op.Position().Line, Workdir: s.Env.Workdir, Op: spec.Heading(s.Op),
			Key: st.Key, Where: st.Where, Run: st.Run, Seconds: st.Took.Seconds(), text: progress.Operation(s.Op),
		})
		if st.Run {
			v.Runs++
		} else {
			v.Hits++
		}
	}
	return v
}

// print is the table for people.
func (v planView) print(w io.Writer, full bool) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	builds := false
	for _, s := range v.Steps {
		builds = builds || s.Stage != ""
	}
	head, cell := "STEP\t", func(string) string { return "" }
	if builds {
		head += "BUILD\t"
		cell = func(name string) string { return name + "\t" }
	}
	fmt.Fprintln(tw, head+"LINE\tRESULT\tDOES\tKEY\tOPERATION")
	for _, s := range v.Steps {
		where, does, key := s.Where, "cached", s.Key
		if where == "" {
			where = "nowhere"
		}
		switch {
		case s.Run:
			does = "run"
		case s.Where == "":
			does = "skip" // what needs it is there
		}
		if !full {
			key = key[:12]
		}
		fmt.Fprintf(tw, "%d\t%s%d\t%s\t%s\t%s\t%s\n", s.Step, cell(s.Stage), s.Line, where, does, key, progress.Sanitize([]byte(s.text)))
	}
	if err := tw.Flush(); err != nil {
		return err
	}
	fmt.Fprintln(w)
	v.printBases(w)
	pull := ""
	switch {
	case v.Pull < 0:
		pull = ", base images to pull"
	case v.Pull > 0:
		pull = ", " + progress.Bytes(v.Pull) + " to pull"
	}
	_, err := fmt.Fprintf(w, "%d cached, %d to run%s\n", v.Hits, v.Runs, pull)
	return err
}

// printBases says what the names of base images were resolved to.
func (v planView) printBases(w io.Writer) {
	seen := map[string]bool{}
	for _, b := range v.Bases {
		if b.Digest == "" || seen[b.Image] {
			continue
		}
		seen[b.Image] = true
		where := b.Where
		if where == "" {
			where = "nowhere"
		}
		fmt.Fprintf(w, "%s is %s@%s (%s)\n", b.Image, b.Ref, b.Digest, where)
	}
}
