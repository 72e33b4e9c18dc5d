package qemu

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// Core is where the guest's memory and its registers go as it ends, as an ELF file that
// gdb, crash and drgn read. Each boot writes it anew.
type Core struct {
	file *os.File

	mu   sync.Mutex
	qmp  *monitor // of the boot that goes on
	err  error    // of the last boot
	done bool     // the last boot's is written
}

// NewCore makes the file, which nobody else may read: what was in a guest's memory may
// be anybody's.
func NewCore(path string) (*Core, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, err
	}
	return &Core{file: f}, errors.Join(f.Chmod(0o600))
}

// Close tells by its error why the last boot has left none.
func (c *Core) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err == nil && !c.done {
		c.err = errors.New("the guest has ended before its memory could be written")
	}
	return errors.Join(c.err, c.file.Close())
}

// dumpTime bounds how long a dump may take: 128 MiB were 0.3 s.
const dumpTime = 5 * time.Minute

// endless are QEMU's arguments by which a guest that has ended stays as it is. It begins
// once QMP listens, which else would not tell of one that ends at once.
var endless = []string{"-S", "-action", "reboot=shutdown,shutdown=pause,panic=pause"}

// monitor is a talk in QMP with one QEMU (QEMU: docs/interop/qmp-spec).
type monitor struct {
	conn    *net.UnixConn
	in      *bufio.Reader
	once    sync.Once
	ended   atomic.Bool // by itself
	ask     sync.Mutex
	replies chan reply
}

// reply is what QMP answers.
type reply struct {
	Return json.RawMessage
	Error  *struct{ Desc string }
	Event  string
}

// begin makes the monitor of a boot, and takes the core once the guest has ended by
// itself.
func (c *Core) begin() (theirs *os.File, err error) {
	theirs, conn, err := socketPair("QMP")
	if err != nil {
		return nil, err
	}
	m := &monitor{conn: conn.(*net.UnixConn), in: bufio.NewReader(conn), replies: make(chan reply, 1)}
	c.mu.Lock()
	c.qmp, c.err, c.done = m, nil, false
	c.mu.Unlock()
	go func() {
		defer conn.Close()
		defer close(m.replies)
		for {
			line, err := m.in.ReadBytes('\n')
			if err != nil {
				return
			}
			var r reply
			if json.Unmarshal(line, &r) != nil {
				return
			}
			switch {
			case r.Event == "SHUTDOWN" || r.Event == "GUEST_PANICKED":
				m.ended.Store(true)
				go func() {
					c.take()
					m.do("quit", nil, nil)
				}()
			case r.Return != nil || r.Error != nil:
				m.replies <- r
			}
		}
	}()
	go func() {
		if m.do("qmp_capabilities", nil, nil) == nil {
			m.do("cont", nil, nil)
		}
	}()
	return theirs, nil
}

// take writes the core, once in a boot. It returns when it is written, and tells whether
// the guest has to be ended then.
func (c *Core) take() (end bool) {
	c.mu.Lock()
	m := c.qmp
	c.mu.Unlock()
	m.once.Do(func() {
		err := m.dump(c.file)
		c.mu.Lock()
		defer c.mu.Unlock()
		c.err, c.done = err, err == nil
	})
	return !m.ended.Load()
}

func (m *monitor) dump(file *os.File) error {
	err := errors.Join(file.Truncate(0), m.do("stop", nil, nil))
	if err == nil {
		_, err = file.Seek(0, 0)
	}
	if err == nil {
		err = m.do("getfd", map[string]any{"fdname": "core"}, file)
	}
	if err == nil {
		// With the guest's own mapping: gdb knows addresses by that.
		err = m.do("dump-guest-memory", map[string]any{"paging": true, "protocol": "fd:core"}, nil)
	}
	if err != nil {
		err = fmt.Errorf("writing the guest's memory: %w", err)
	}
	return err
}

// do has a command done, with a file handed over.
func (m *monitor) do(command string, arguments map[string]any, file *os.File) error {
	m.ask.Lock()
	defer m.ask.Unlock()
	line, err := json.Marshal(struct {
		Execute   string         `json:"execute"`
		Arguments map[string]any `json:"arguments,omitempty"`
	}{command, arguments})
	if err != nil {
		return err
	}
	var rights []byte
	if file != nil {
		rights = unix.UnixRights(int(file.Fd()))
	}
	if _, _, err := m.conn.WriteMsgUnix(append(line, '\n'), rights, nil); err != nil {
		return ended(err)
	}
	select {
	case r, ok := <-m.replies:
		switch {
		case !ok:
			return ErrEnded
		case r.Error != nil:
			return fmt.Errorf("QEMU's %s: %s", command, r.Error.Desc)
		}
		return nil
	case <-time.After(dumpTime):
		return fmt.Errorf("QEMU's %s has no answer after %v", command, dumpTime)
	}
}
