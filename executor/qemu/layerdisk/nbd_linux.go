package layerdisk

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"

	"golang.org/x/sys/unix"
)

// Numbers of the NBD protocol (github.com/NetworkBlockDevice/nbd, doc/proto.md).
const (
	nbdMagic        = 0x4e42444d41474943
	nbdOptMagic     = 0x49484156454F5054
	nbdReplyMagic   = 0x3e889045565a9
	nbdRequestMagic = 0x25609513
	nbdSimpleMagic  = 0x67446698

	nbdFixedNewstyle = 1
	nbdNoZeroes      = 2

	nbdOptAbort = 2
	nbdOptGo    = 7

	nbdRepAck      = 1
	nbdRepInfo     = 3
	nbdRepErrUnsup = 1<<31 | 1

	nbdFlags = 1 | 2 // has flags, read-only

	nbdCmdRead  = 0
	nbdCmdDisc  = 2
	nbdCmdFlush = 3

	nbdMaxRead   = 32 << 20
	nbdMaxOption = 64 << 10
)

// Serve answers one client by the NBD protocol until it goes, and closes conn. The error is the first one of reading a layer, of which the client
// has only seen EIO, or that the client does not speak the protocol.
func (d *Disk) Serve(conn net.Conn) error {
	defer d.files.close()
	defer conn.Close()
	in := bufio.NewReader(conn)
	if err := nbdHandshake(conn, in); err != nil {
		if errors.Is(err, io.EOF) || errors.Is(err, unix.ECONNRESET) {
			return nil
		}
		return fmt.Errorf("serve layers: %w", err)
	}
	be := binary.BigEndian
	var failed error
	var buf []byte
	for {
		var req [28]byte
		if _, err := io.ReadFull(in, req[:]); err != nil {
			return failed
		}
		kind, off, size := be.Uint16(req[6:]), int64(be.Uint64(req[16:])), be.Uint32(req[24:])
		if be.Uint32(req[0:]) != nbdRequestMagic || size > nbdMaxRead {
			return errors.Join(failed, errors.New("serve layers: not a request"))
		}
		reply := make([]byte, 16)
		be.PutUint32(reply[0:], nbdSimpleMagic)
		copy(reply[8:], req[8:16])
		switch kind {
		case nbdCmdDisc:
			return failed
		case nbdCmdFlush:
		case nbdCmdRead:
			if int(size) > cap(buf) {
				buf = make([]byte, size)
			}
			if off < 0 || off > diskSize-int64(size) {
				be.PutUint32(reply[4:], uint32(unix.EINVAL))
				break
			}
			if err := d.readAt(buf[:size], off); err != nil {
				if failed == nil {
					failed = fmt.Errorf("serve layers: %w", err)
				}
				be.PutUint32(reply[4:], uint32(unix.EIO))
				break
			}
			v := net.Buffers{reply, buf[:size]}
			if _, err := v.WriteTo(conn); err != nil {
				return failed
			}
			continue
		default:
			be.PutUint32(reply[4:], uint32(unix.EINVAL))
		}
		if _, err := conn.Write(reply); err != nil {
			return failed
		}
	}
}

func nbdHandshake(conn io.Writer, in io.Reader) error {
	be := binary.BigEndian
	hello := be.AppendUint64(nil, nbdMagic)
	hello = be.AppendUint64(hello, nbdOptMagic)
	hello = be.AppendUint16(hello, nbdFixedNewstyle|nbdNoZeroes)
	if _, err := conn.Write(hello); err != nil {
		return err
	}
	var flags [4]byte
	if _, err := io.ReadFull(in, flags[:]); err != nil {
		return err
	}
	for {
		var head [16]byte
		if _, err := io.ReadFull(in, head[:]); err != nil {
			return err
		}
		option, size := be.Uint32(head[8:]), be.Uint32(head[12:])
		if be.Uint64(head[0:]) != nbdOptMagic || size > nbdMaxOption {
			return errors.New("not an option")
		}
		if _, err := io.CopyN(io.Discard, in, int64(size)); err != nil {
			return err
		}
		reply := func(kind uint32, data []byte) error {
			b := be.AppendUint64(nil, nbdReplyMagic)
			b = be.AppendUint32(b, option)
			b = be.AppendUint32(b, kind)
			b = be.AppendUint32(b, uint32(len(data)))
			_, err := conn.Write(append(b, data...))
			return err
		}
		switch option {
		case nbdOptGo:
			info := be.AppendUint16(nil, 0) // the export's size and flags
			info = be.AppendUint64(info, diskSize)
			info = be.AppendUint16(info, nbdFlags)
			if err := reply(nbdRepInfo, info); err != nil {
				return err
			}
			return reply(nbdRepAck, nil)
		case nbdOptAbort:
			return errors.Join(reply(nbdRepAck, nil), io.EOF)
		default:
			if err := reply(nbdRepErrUnsup, nil); err != nil {
				return err
			}
		}
	}
}
