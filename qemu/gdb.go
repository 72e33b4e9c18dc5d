package qemu

import (
	"bufio"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// Debugger speaks to a guest as gdb does (GDB's manual, "Remote Serial Protocol"),
// over a socket that has no name. It is for one boot, which begins stopped: nothing
// runs until it is told to continue.
type Debugger struct {
	theirs *os.File // QEMU's end; closed once it has that
	conn   net.Conn
	in     *bufio.Reader
}

// ErrEnded tells that the guest ended, or QEMU, while it was spoken to.
var ErrEnded = errors.New("the guest has ended before")

// NewDebugger makes one for the next boot of a machine that has it.
func NewDebugger() (*Debugger, error) {
	theirs, conn, err := socketPair("gdb")
	if err != nil {
		return nil, err
	}
	return &Debugger{theirs: theirs, conn: conn, in: bufio.NewReader(conn)}, nil
}

// socketPair makes a socket that has no name, one end of which is for QEMU.
func socketPair(what string) (theirs *os.File, conn net.Conn, err error) {
	ends, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("a socket for QEMU's %s: %w", what, err)
	}
	theirs, ours := os.NewFile(uintptr(ends[0]), what), os.NewFile(uintptr(ends[1]), what)
	defer ours.Close()
	if conn, err = net.FileConn(ours); err != nil {
		return nil, nil, errors.Join(err, theirs.Close())
	}
	return theirs, conn, nil
}

// Close ends the talk; a guest that is still stopped then stays so.
func (d *Debugger) Close() error {
	d.theirs.Close() // perhaps again
	return d.conn.Close()
}

// Watch stops the guest behind each write to some bytes, by that address of them.
func (d *Debugger) Watch(address uint64, n int) error {
	return d.ok(fmt.Sprintf("Z2,%x,%x", address, n))
}

// Continue lets the guest run until it stops.
func (d *Debugger) Continue() error {
	reply, err := d.ask("c")
	if err == nil && !strings.HasPrefix(reply, "T") && !strings.HasPrefix(reply, "S") {
		err = ErrEnded
	}
	return err
}

// Read is n bytes at an address of the guest, as it has them mapped.
func (d *Debugger) Read(address uint64, n int) ([]byte, error) {
	return d.bytes(fmt.Sprintf("m%x,%x", address, n), n)
}

// Write writes some, whether or not the guest itself may.
func (d *Debugger) Write(address uint64, b []byte) error {
	return d.ok(fmt.Sprintf("M%x,%x:%x", address, len(b), b))
}

func (d *Debugger) bytes(packet string, n int) ([]byte, error) {
	reply, err := d.ask(packet)
	if err != nil {
		return nil, err
	}
	b, err := hex.DecodeString(reply)
	if err != nil || len(b) != n {
		return nil, fmt.Errorf("QEMU's gdb answers %.40q to %.40q", reply, packet)
	}
	return b, nil
}

func (d *Debugger) ok(packet string) error {
	reply, err := d.ask(packet)
	if err == nil && reply != "OK" {
		err = fmt.Errorf("QEMU's gdb answers %.40q to %.40q", reply, packet)
	}
	return err
}

// maxPacket bounds an answer, in bytes.
const maxPacket = 1 << 16

// ask sends a packet and returns the next one.
func (d *Debugger) ask(packet string) (string, error) {
	sum := byte(0)
	for _, b := range []byte(packet) {
		sum += b
	}
	if _, err := fmt.Fprintf(d.conn, "$%s#%02x", packet, sum); err != nil {
		return "", ended(err)
	}
	if _, err := d.in.ReadString('$'); err != nil { // behind the acknowledgement
		return "", ended(err)
	}
	var reply []byte
	for len(reply) < maxPacket {
		b, err := d.in.ReadByte()
		if err != nil {
			return "", ended(err)
		}
		if b != '#' {
			reply = append(reply, b)
			continue
		}
		if _, err := d.in.Discard(2); err != nil { // a socket loses nothing
			return "", ended(err)
		}
		_, err = d.conn.Write([]byte("+"))
		return string(reply), ended(err)
	}
	return "", fmt.Errorf("QEMU's gdb answers more than %d bytes", maxPacket)
}

// ended is an error of a socket whose other end may be gone.
func ended(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, unix.EPIPE) || errors.Is(err, unix.ECONNRESET) {
		return ErrEnded
	}
	return err
}
