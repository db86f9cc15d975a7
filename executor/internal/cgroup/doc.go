// Package cgroup is what obx does with the control groups of Linux: version 1, version 2, and both side by side.
//
// It owns the groups below [Top], one for each run of obx and in it one for each process: that they are made with their limits, counted, ended
// and removed. An OCI runtime makes the groups of its containers itself, with the names of this package.
//
// # Devices
//
// A process has the capability to make device nodes, since images have them and some builds make file systems. What keeps it from opening those that
// it makes is its group: rules of the devices controller (version 1), or a program that the kernel runs at each open (version 2). The rules
// are those of runc, and the same for all processes.
//
// # What this package refuses to know
//
// Steps, specs, and how a process gets into its group before it runs.
package cgroup
