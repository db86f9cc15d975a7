package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/docker/go-units"
	"github.com/spf13/cobra"

	"github.com/ocurrent/obx/executor"
	"github.com/ocurrent/obx/executor/build"
	"github.com/ocurrent/obx/registry/images"
)

// policyFlags say what a spec may reach.
type policyFlags struct {
	allow      []string
	untrusted  bool
	policyName string

	policy *build.Policy    // nil: everything is allowed; set by settle, as what follows
	limits *executor.Limits // nil: none
}

// allowAll as --allow is everything.
const allowAll = "all"

// noPolicy as --policy is none at all, whatever the environment and the configuration say.
const noPolicy = "none"

func (p *policyFlags) add(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringSliceVar(&p.allow, "allow", nil, "let the spec reach `WHAT`, and nothing else of these: "+
		strings.Join(allowable()[:len(build.Entitlements)], ", ")+";\nor all; repeatable, or a list with commas (see: obx help policy)")
	f.BoolVar(&p.untrusted, "untrusted", false, "the spec is somebody else's: allow nothing but what --allow or the policy says, "+
		"and limit its steps (see: obx help policy)")
	f.StringVar(&p.policyName, "policy", "", "take what a spec may reach, and the limits of its steps, from `FILE` "+
		"(default: $OBX_POLICY, else the configuration's; none: no policy)")
	fixedValues(cmd, "allow", allowable()...)
	cmd.MarkFlagFilename("policy", "json")
}

// allowable lists the values of --allow.
func allowable() []string {
	var names []string
	for _, e := range build.Entitlements {
		names = append(names, string(e))
	}
	return append(names, allowAll)
}

// A policyFile is what --policy names.
type policyFile struct {
	Allow  []string         `json:"allow"`
	Limits policyFileLimits `json:"limits"`
}

// policyFileLimits are written as the flags' values are. Nil is what --untrusted has.
type policyFileLimits struct {
	Memory  *string  `json:"memory"`
	CPUs    *float64 `json:"cpus"`
	PIDs    *int64   `json:"pids"`
	Timeout *string  `json:"timeout"`
	Disk    *string  `json:"disk"`
	Inodes  *int64   `json:"inodes"`
}

const policyHint = "fields are: allow, limits (memory, cpus, pids, timeout, disk, inodes); see: obx help policy"

// untrustedLimits are those of steps of specs that nobody has looked at.
func untrustedLimits() executor.Limits {
	l := executor.Limits{Memory: 8 * units.GiB, PIDs: executor.DefaultPIDs, Timeout: 2 * time.Hour, Disk: 32 * units.GiB, Inodes: 2_000_000}
	if half := machineMemory() / 2; half > 0 {
		l.Memory = min(l.Memory, half)
	}
	return l
}

// imageLimits are those of base images that a spec names which nobody has looked at.
var imageLimits = images.Limits{Bytes: 32 * units.GiB, Files: 2_000_000, Time: 2 * time.Hour}

// settle reads what flags, environment and configuration say. Nothing said is no policy; --untrusted is an empty one.
func (p *policyFlags) settle(c *config) error {
	name, source := p.policyName, "--policy"
	if name == "" {
		name, source = os.Getenv("OBX_POLICY"), "$OBX_POLICY"
	}
	if name == "" {
		name, source = c.Policy, c.file+": policy"
		if name != "" && name != noPolicy && !filepath.IsAbs(name) {
			name = filepath.Join(filepath.Dir(c.file), name)
		}
	}
	var allow []string
	strict, limits := p.untrusted, untrustedLimits()
	if name != "" && name != noPolicy {
		text, err := os.ReadFile(name)
		if err != nil {
			return usage("", "%s: read the policy: %w", source, err)
		}
		var file policyFile
		if err := parseJSON(name, text, "the policy", &file, policyHint); err != nil {
			return err
		}
		if err := file.Limits.replace(&limits); err != nil {
			return usage(policyHint, "%s: %w", name, err)
		}
		allow, source, strict = file.Allow, name+": allow:", true
	}
	if strict {
		p.limits = &limits
	}
	if p.allow != nil {
		allow, source, strict = p.allow, "--allow", true
	}
	return p.setAllowed(allow, source, strict)
}

func (p *policyFlags) setAllowed(allow []string, source string, strict bool) error {
	policy := &build.Policy{}
	for _, a := range allow {
		if !slices.Contains(allowable(), a) {
			return usage("what can be allowed is: "+strings.Join(allowable(), ", "), "%s %s: unknown", source, a)
		}
		if a == allowAll {
			strict = false
		}
		policy.Allow = append(policy.Allow, build.Entitlement(a))
	}
	if strict {
		p.policy = policy
	}
	return nil
}

// replace sets what the file says.
func (l policyFileLimits) replace(to *executor.Limits) error {
	size := func(name string, s *string, to *int64) error {
		if s == nil {
			return nil
		}
		n, err := units.RAMInBytes(*s)
		if err != nil || n < 0 {
			return fmt.Errorf("limits: %s: %q is no size", name, *s)
		}
		*to = n
		return nil
	}
	count := func(name string, n *int64, to *int64) error {
		if n == nil {
			return nil
		}
		if *n < 0 {
			return fmt.Errorf("limits: %s cannot be negative", name)
		}
		*to = *n
		return nil
	}
	err := errors.Join(size("memory", l.Memory, &to.Memory), size("disk", l.Disk, &to.Disk),
		count("pids", l.PIDs, &to.PIDs), count("inodes", l.Inodes, &to.Inodes))
	if l.PIDs != nil {
		to.PIDs = explicitPIDs(*l.PIDs)
	}
	if l.CPUs != nil {
		if to.CPUs = *l.CPUs; to.CPUs < 0 {
			return errors.Join(err, errors.New("limits: cpus cannot be negative"))
		}
	}
	if l.Timeout != nil {
		d, terr := time.ParseDuration(*l.Timeout)
		if *l.Timeout == "0" {
			d, terr = 0, nil
		}
		if terr != nil || d < 0 {
			return errors.Join(err, fmt.Errorf("limits: timeout: %q is no time", *l.Timeout))
		}
		to.Timeout = d
	}
	return err
}

// explicitPIDs is a limit of processes where 0 means none.
func explicitPIDs(n int64) int64 {
	if n == 0 {
		return -1
	}
	return n
}

// given reports images that the user has named, and not the spec.
func (in *inputs) given(im *images.Resolver) func(string) bool {
	return func(image string) bool {
		name, err := images.Normalize(image)
		if err != nil {
			return false
		}
		_, ok := im.Bases[name]
		for _, to := range im.Bases {
			ok = ok || to == name
		}
		return ok || slices.ContainsFunc(in.disks, func(d *diskBase) bool { return d.name == name })
	}
}

// policyTopic is `obx help policy`.
func policyTopic() *cobra.Command {
	l := untrustedLimits()
	return &cobra.Command{
		Use:   "policy",
		Short: "What a spec may reach, and how that is said",
		Long: `A spec can ask for more than a sandbox. Whoever types a command line has read the spec, as a rule: everything is allowed.
A service that runs others' specs says what is:

  network.host      (network host): steps in the network of this machine, with all that listens on it
  base.local        (from oci:DIR): files of this machine as a base image
  registry.private  (from HOST/...): registries on this machine, in private networks, and of hosts without a domain.
                    Names are judged, and each address that is really connected to: what DNS, a redirect or a token's
                    address leads to counts. Behind a proxy, names alone can be judged
  cache.shared      cache mounts with (sharing shared) or (sharing locked): one directory, in which steps of other
                    builds write at the same time, and that keeps what a step that fails, or is stopped, has written.
                    Others (sharing private) are a copy for each step. What a step leaves in one is the next step's: to
                    keep builds apart that way, give each its own --domain

What the command line names is the user's choice, and always allowed: --base, --mirror, --cache.

--untrusted allows nothing, and limits each step as below. --allow replaces the list of what is allowed: by itself, it
allows what it names, and nothing else; --allow all allows everything. A policy is a JSON file that --policy names, else
$OBX_POLICY, else "policy" in the configuration (obx help config). It is --untrusted with other values. All fields may
be left out; one that obx does not know is an error. A flag replaces what a policy says; 0 is no limit:

  "allow"      what is allowed: as --allow (none)
  "limits"     "memory", "cpus", "pids", "timeout", "disk", "inodes": as the flags (` +
			fmt.Sprintf("memory: %s, or half of the machine's;\n               cpus: no limit; pids: %d; timeout: 2h; disk: %s; inodes: %d",
				"8g", l.PIDs, "32g", l.Inodes) + `)

A base image that the spec names, and --base does not say the meaning of, is limited as well: its layers to 32 GiB together,
each to 2,000,000 files, and its download to 2 hours.

What a spec may not reach is told before anything runs, as FILE:LINE:COLUMN: message, all of it at once, by obx run, plan,
explain, shell and check. The exit status is 2. An address that is private is told when names are looked up, before the
first step too, but that of a layer when it is fetched. Neither a policy nor a limit is in any key.

Example:

  {
    "allow": ["network.host"],
    "limits": {"memory": "4g", "timeout": "1h", "disk": "20g"}
  }`,
	}
}
