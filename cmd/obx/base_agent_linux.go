package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"

	"github.com/spf13/cobra"

	"github.com/ocurrent/obx/executor/qemu/agents"
)

// agentService has systemd start the agent where obx runs the machine, and nowhere else. It comes before sshd, which obx uses if no agent greets.
const agentService = `[Unit]
Description=obx's agent, which runs the steps of builds
Documentation=https://github.com/ocurrent/obx
BindsTo=dev-virtio\x2dports-obx.control.device
After=dev-virtio\x2dports-obx.control.device
Before=ssh.service sshd.service

[Service]
ExecStart=/usr/local/sbin/obx-agent serve
Restart=on-failure
KillMode=process
OOMScoreAdjust=-1000

[Install]
WantedBy=dev-virtio\x2dports-obx.control.device
`

func baseAgentCommand() *cobra.Command {
	var arch string
	cmd := &cobra.Command{
		Use:   "agent [flags] DIR",
		Short: "Write the agent that a disk image may have",
		Long: `Write obx's agent for disk images into DIR: the program obx-agent, and obx-agent.service for systemd. A Linux disk with it needs no sshd
and no key, and a machine is ready a little earlier than by ssh, which puts the same program into the machine each time.

Put the program into /usr/local/sbin, the other file into /etc/systemd/system, and enable the service. It starts only in machines of obx. The
system needs control groups of version 2 and, as modules or built in, virtio_console, virtio_blk, overlay, ext4 and erofs, as Debian and Ubuntu have.`,
		Example: `  obx base agent . && cat > agent.sexp <<END
  ((from debian)
   (copy (src obx-agent) (dst /usr/local/sbin/obx-agent))
   (copy (src obx-agent.service) (dst /etc/systemd/system/obx-agent.service))
   (run (shell "systemctl enable obx-agent")))
  END
  obx run --executor qemu --qemu-ssh-key id_ed25519 --base debian=qcow2:debian.qcow2 agent.sexp .`,
		Args: args(1, 1, "DIR"),
		RunE: func(cmd *cobra.Command, args []string) error {
			program, err := agents.Program("linux", arch)
			if errors.Is(err, agents.ErrNone) {
				return err
			}
			if err != nil {
				return usage("for example --arch amd64", "--arch: %w", err)
			}
			if err := os.MkdirAll(args[0], 0o755); err != nil {
				return err
			}
			for _, f := range []struct {
				name string
				data []byte
				mode os.FileMode
			}{{"obx-agent", program, 0o755}, {"obx-agent.service", []byte(agentService), 0o644}} {
				name := filepath.Join(args[0], f.name)
				if err := os.WriteFile(name, f.data, f.mode); err != nil {
					return fmt.Errorf("write the agent: %w", err)
				}
				fmt.Fprintln(cmd.OutOrStdout(), name)
			}
			return nil
		},
	}
	f := cmd.Flags()
	f.StringVar(&arch, "arch", runtime.GOARCH, "write the program for `ARCH`: amd64, arm64 or riscv64")
	fixedValues(cmd, "arch", "amd64", "arm64", "riscv64")
	return cmd
}
