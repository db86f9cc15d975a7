//go:build linux

package main

import (
	"encoding/binary"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// loopbackUp starts the loopback interface of the present network namespace.
func loopbackUp() error { return linkUp("lo") }

func linkUp(name string) error {
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("interface %s: %w", name, err)
	}
	defer unix.Close(s)
	req, err := unix.NewIfreq(name)
	if err != nil {
		return err
	}
	if err := unix.IoctlIfreq(s, unix.SIOCGIFFLAGS, req); err != nil {
		return fmt.Errorf("interface %s: %w", name, err)
	}
	req.SetUint16(req.Uint16() | unix.IFF_UP)
	if err := unix.IoctlIfreq(s, unix.SIOCSIFFLAGS, req); err != nil {
		return fmt.Errorf("interface %s: %w", name, err)
	}
	return nil
}

// The addresses of QEMU's user-mode network.
var (
	ownAddress = net.IPv4(10, 0, 2, 15).To4()
	gateway    = net.IPv4(10, 0, 2, 2).To4()
	netmask    = net.IPv4(255, 255, 255, 0).To4()
)

const nameServer = "10.0.2.3"

// networkUp starts the interface that leads to the host.
func networkUp() error {
	if err := loadModules(modulesNet); err != nil {
		return err
	}
	name, err := findInterface()
	if err != nil {
		return err
	}
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(s)
	for _, set := range []struct { // a netmask needs an address
		request uint
		to      net.IP
	}{{unix.SIOCSIFADDR, ownAddress}, {unix.SIOCSIFNETMASK, netmask}} {
		req, err := unix.NewIfreq(name)
		if err != nil {
			return err
		}
		if err := req.SetInet4Addr(set.to); err != nil {
			return err
		}
		if err := unix.IoctlIfreq(s, set.request, req); err != nil {
			return fmt.Errorf("interface %s: set its address: %w", name, err)
		}
	}
	if err := linkUp(name); err != nil {
		return err
	}
	return addDefaultRoute(s)
}

func findInterface() (string, error) {
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(time.Millisecond) {
		entries, err := os.ReadDir("/sys/class/net")
		if err != nil {
			return "", err
		}
		for _, e := range entries {
			if _, err := os.Stat(filepath.Join("/sys/class/net", e.Name(), "device")); err == nil {
				return e.Name(), nil
			}
		}
		if time.Now().After(deadline) {
			return "", fmt.Errorf("the machine has no network interface")
		}
	}
}

// rtentry is struct rtentry of 64-bit Linux.
type rtentry struct {
	_       uint64
	dst     unix.RawSockaddrInet4
	gateway unix.RawSockaddrInet4
	genmask unix.RawSockaddrInet4
	flags   uint16
	_       [2]byte
	_       [4]byte
	_       [5]uint64
	_       [2]uint64
}

func addDefaultRoute(s int) error {
	const routeUp, routeGateway = 1, 2
	inet := func(ip net.IP) unix.RawSockaddrInet4 {
		return unix.RawSockaddrInet4{Family: unix.AF_INET, Addr: [4]byte(ip)}
	}
	zero := net.IPv4zero.To4()
	rt := rtentry{dst: inet(zero), gateway: inet(gateway), genmask: inet(zero), flags: routeUp | routeGateway}
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(s), unix.SIOCADDRT, uintptr(unsafe.Pointer(&rt)))
	if errno != 0 {
		return fmt.Errorf("set the default route: %w", errno)
	}
	return nil
}

// setClock sets the time of day.
func setClock(now time.Time) error {
	tv := unix.NsecToTimeval(now.UnixNano())
	if err := unix.Settimeofday(&tv); err != nil {
		return fmt.Errorf("set the clock: %w", err)
	}
	return nil
}

// reseed gives the kernel's random generator what no copy of this machine has.
func reseed(seed []byte) error {
	f, err := os.OpenFile("/dev/urandom", os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	// struct rand_pool_info
	info := make([]byte, 8, 8+len(seed))
	binary.NativeEndian.PutUint32(info, uint32(len(seed)*8))
	binary.NativeEndian.PutUint32(info[4:], uint32(len(seed)))
	info = append(info, seed...)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), unix.RNDADDENTROPY, uintptr(unsafe.Pointer(&info[0]))); errno != 0 {
		return fmt.Errorf("seed the random generator: %w", errno)
	}
	const reseedCRNG = 0x5207 // RNDRESEEDCRNG
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), reseedCRNG, 0); errno != 0 {
		return fmt.Errorf("reseed the random generator: %w", errno)
	}
	runtime.KeepAlive(info)
	return nil
}

// partition is struct blkpg_partition.
type partition struct {
	start, length int64
	number        int32
	_             [128]byte
	_             [4]byte
}

// changePartition adds or deletes a partition of a disk, in the kernel's memory only.
func changePartition(disk string, op int32, p partition) error {
	f, err := os.OpenFile(disk, os.O_RDONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	arg := struct {
		op, flags, size int32
		data            *partition
	}{op: op, size: int32(unsafe.Sizeof(p)), data: &p}
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), unix.BLKPG, uintptr(unsafe.Pointer(&arg))); errno != 0 {
		return fmt.Errorf("partition %d of %s: %w", p.number, disk, errno)
	}
	runtime.KeepAlive(&p)
	return nil
}
