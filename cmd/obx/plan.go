package main

import (
	"errors"
	"fmt"
	"io"
	"text/tabwriter"

	"github.com/opencontainers/go-digest"
	"github.com/spf13/cobra"

	"github.com/ocurrent/obx/cmd/obx/internal/progress"
	"github.com/ocurrent/obx/cmd/obx/internal/safe"
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
		Long: `Show each step's key, where its result is, and what a run would pull and execute. Nothing is run, pulled or made,
but that a disk (--base NAME=qcow2:FILE) is read. Steps are numbered from 1 in the order of the log. With the flags of obx run that decide what is built, keys are those of
the run. With --cache, shared caches are asked too, all at once: in one round trip, or two where they do not have the last
step, and one more where what they have was published for other inputs that came to the same.

With --json, for schedulers, one object is printed:

  platform   os/arch[/variant]
  bases      for each build: "stage", its name (none for the outermost), "image" as the spec has it, "ref" and
             "digest" that it was resolved to, and "key"
  stages     for each build: "stage", "steps": how many it has, "hit": the deepest one that has a result, and that a run
             goes on from ("step": its number, "key", "where": "store" or the name of a cache; none if there is no
             result), "pullBytes": what a run would pull for it, compressed
  steps      for each step: "step", "stage", "line", "workdir", "op", "key", "where" (none: nowhere), "run": whether a
             run would execute it, "seconds": how long it took
  hits, runs, pullBytes    sums. A run pulls base layers that several builds share once, and so perhaps less`,
		Example: `  obx plan build.sexp src
  obx plan --rebuild 3 build.sexp
  obx plan --json build.sexp | jq -r '.bases[].digest'
  obx plan --json --cache registry.example/cache build.sexp | jq '{runs, pullBytes}'`,
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
			p.builder.Events = p.notices.event
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
	in.sharing.add(cmd)
	in.add(cmd)
	return cmd
}

// A planView is a plan as `obx plan --json` prints it.
type planView struct {
	Platform string      `json:"platform"`
	Bases    []baseView  `json:"bases"`
	Stages   []stageView `json:"stages"`
	Steps    []stepView  `json:"steps"`
	Hits     int         `json:"hits"`
	Runs     int         `json:"runs"`
	Pull     int64       `json:"pullBytes"`
	shared   bool        // a cache was asked
}

type baseView struct {
	Stage  string        `json:"stage,omitempty"`
	Image  string        `json:"image"`
	Ref    string        `json:"ref"`
	Digest digest.Digest `json:"digest,omitempty"`
	Key    string        `json:"key"`
}

type stageView struct {
	Stage string   `json:"stage,omitempty"`
	Steps int      `json:"steps"`
	Hit   *hitView `json:"hit,omitempty"`
	Pull  int64    `json:"pullBytes"`
	hits  int      // steps up to Hit
}

type hitView struct {
	Step  int    `json:"step"`
	Key   string `json:"key"`
	Where string `json:"where"`
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
	v := planView{
		Platform: platformString(p.plan.Platform), Bases: []baseView{}, Stages: []stageView{}, Steps: []stepView{},
		shared: len(p.builder.Caches) > 0,
	}
	pulled := map[string]bool{} // a base that several stages start from is pulled once
	for _, b := range bases {
		s := b.Stage
		key := s.BaseKey.String()
		v.Bases = append(v.Bases, baseView{Stage: s.Name, Image: s.Spec.From.Image, Ref: s.Base.Ref, Digest: s.Base.Digest, Key: key})
		st := stageView{Stage: s.Name, Steps: len(s.Steps), Pull: b.Pull}
		for i, step := range s.Steps {
			if at := steps[step.Number-1]; at.Where != "" {
				st.Hit, st.hits = &hitView{Step: step.Number, Key: at.Key, Where: at.Where}, i+1
			}
		}
		v.Stages = append(v.Stages, st)
		if st.Hit != nil || !pulled[key] {
			v.Pull += b.Pull
		}
		pulled[key] = pulled[key] || st.Hit == nil && b.Pull > 0
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
		cell = func(name string) string { return safe.Line(name) + "\t" }
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
		fmt.Fprintf(tw, "%d\t%s%d\t%s\t%s\t%s\t%s\n", s.Step, cell(s.Stage), s.Line, where, does, key, safe.Line(s.text))
	}
	if err := tw.Flush(); err != nil {
		return err
	}
	fmt.Fprintln(w)
	v.printBases(w)
	if v.shared {
		v.printStages(w)
	}
	_, err := fmt.Fprintf(w, "%d cached, %d to run%s\n", v.Hits, v.Runs, toPull(v.Pull))
	return err
}

func toPull(n int64) string {
	if n == 0 {
		return ""
	}
	return ", " + progress.Bytes(n) + " to pull"
}

// printStages says what a run goes on from.
func (v planView) printStages(w io.Writer) {
	for _, s := range v.Stages {
		name := "the build"
		if s.Stage != "" {
			name = spec.Quote(s.Stage)
		}
		from := "nothing yet"
		if s.Hit != nil {
			from = fmt.Sprintf("%d of %s, in %s", s.hits, progress.Count(s.Steps, "step"), s.Hit.Where)
		}
		fmt.Fprintf(w, "%s: %s%s\n", name, from, toPull(s.Pull))
	}
}

// printBases says what the names of base images were resolved to.
func (v planView) printBases(w io.Writer) {
	seen := map[string]bool{}
	for _, b := range v.Bases {
		if b.Digest == "" || seen[b.Image] {
			continue
		}
		seen[b.Image] = true
		fmt.Fprintln(w, safe.Line(fmt.Sprintf("%s is %s@%s", b.Image, b.Ref, b.Digest)))
	}
}
