package main

import (
	"math"
	"time"

	"github.com/docker/go-units"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/ocurrent/obx/executor"
	"github.com/ocurrent/obx/executor/build"
	"github.com/ocurrent/obx/executor/build/results"
)

// A sandbox is the flags that say how steps run.
type sandbox struct {
	executorFlags
	secrets  []string
	jobs     int
	memory   string
	cpus     float64
	pids     int64
	timeout  time.Duration
	disk     string
	inodes   int64
	fastSync bool

	logLimit      string
	logLimitBytes int64

	flags *pflag.FlagSet
}

func (s *sandbox) add(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringArrayVar(&s.secrets, "secret", nil, "give steps a secret as `ID=FILE`, ID:FILE, ID=env:VARIABLE or id=ID,src=FILE; repeatable")
	f.IntVarP(&s.jobs, "jobs", "j", 0, "run up to `N` steps at once (default: 4, or twice the processors if that is more)")
	s.flags = f
	f.StringVar(&s.memory, "memory", "", "let a step use `SIZE` of memory, as 512m or 2g")
	f.Float64Var(&s.cpus, "cpus", 0, "let a step use `N` processors, as 1.5")
	f.Int64Var(&s.pids, "pids", executor.DefaultPIDs, "let a step have `N` processes; 0: any number")
	f.DurationVar(&s.timeout, "timeout", 0, "stop a step after `TIME`, as 10m")
	f.StringVar(&s.disk, "disk", "", "let a step add `SIZE` to its files and cache mounts, as 512m or 20g")
	f.Int64Var(&s.inodes, "inodes", 0, "let a step add `N` files, directories and links")
	f.StringVar(&s.logLimit, "log-limit", units.BytesSize(results.DefaultLogLimit), "keep and show `SIZE` of a step's output, and 10 times as much of all that need not run")
	f.BoolVar(&s.fastSync, "fast-sync", false, "make sync calls in steps do nothing")
	s.executorFlags.add(cmd)
}

// leastMemory is less than any sandbox has begun with.
const leastMemory = 1 * units.MiB

// limits reads what has to be parsed, before anything is opened.
func (s *sandbox) limits() (executor.Limits, error) {
	l := executor.Limits{CPUs: s.cpus, Timeout: s.timeout, Inodes: s.inodes}
	if s.flags.Changed("pids") {
		l.PIDs = explicitPIDs(s.pids)
	}
	var err error
	if l.Memory, err = parseLimit("memory", s.memory); err != nil {
		return l, err
	}
	if l.Disk, err = parseLimit("disk", s.disk); err != nil {
		return l, err
	}
	if s.logLimitBytes, err = parseSize("log-limit", s.logLimit); err != nil {
		return l, err
	}
	if math.IsNaN(s.cpus) || math.IsInf(s.cpus, 0) {
		return l, usage("for example --cpus 1.5", "--cpus %v: not a number of processors", s.cpus)
	}
	if l.Memory > 0 && l.Memory < leastMemory {
		return l, usage("for example --memory 512m: without a unit, it is bytes", "--memory %s: no process starts with less than %s", s.memory, units.BytesSize(leastMemory))
	}
	if s.cpus < 0 || s.pids < 0 || s.timeout < 0 || s.inodes < 0 {
		return l, usage("", "--cpus, --pids, --timeout and --inodes cannot be negative")
	}
	if s.flags.Changed("jobs") && s.jobs < 1 {
		return l, usage("without --jobs there are 4, or twice the processors if that is more", "--jobs %d: at least one step has to run", s.jobs)
	}
	if _, err := s.kind(); err != nil {
		return l, err
	}
	return l, nil
}

// within are the limits of flags, and where a flag is not given, those of the policy; nil has none.
func (s *sandbox) within(l executor.Limits, policy *executor.Limits) executor.Limits {
	if policy == nil {
		return l
	}
	for flag, take := range map[string]func(){
		"memory":  func() { l.Memory = policy.Memory },
		"cpus":    func() { l.CPUs = policy.CPUs },
		"pids":    func() { l.PIDs = policy.PIDs },
		"timeout": func() { l.Timeout = policy.Timeout },
		"disk":    func() { l.Disk = policy.Disk },
		"inodes":  func() { l.Inodes = policy.Inodes },
	} {
		if !s.flags.Changed(flag) {
			take()
		}
	}
	return l
}

// parseLimit reads a size where none, and 0, is no limit.
func parseLimit(flag, s string) (int64, error) {
	if s == "" || s == "0" {
		return 0, nil
	}
	return parseSize(flag, s)
}

func parseSize(flag, s string) (int64, error) {
	n, err := units.RAMInBytes(s)
	if err != nil || n <= 0 {
		return 0, usage("for example --"+flag+" 512m", "--%s %s: not a size", flag, s)
	}
	return n, nil
}

// apply sets what a builder needs to know.
func (s *sandbox) apply(b *build.Builder) {
	b.Jobs, b.FastSync, b.LogLimit = s.jobs, s.fastSync, s.logLimitBytes
}
