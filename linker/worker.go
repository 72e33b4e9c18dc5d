package linker

import (
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"regexp"

	"golang.org/x/sys/unix"
)

// Worker links plans one after the other in a folder of its own, full of
// links to the build. Several workers link at the same time.
type Worker struct {
	kernel *Kernel
	room   string   // the folder that all it writes is in
	held   *os.File // the room, locked
	takes  uint64   // bytes that it may fill of memoryDir
	dir    string   // in the room; ".." from here must be the source, as it is from the build
	object *padded  // nil until something is padded
	images int      // handed out so far
}

// memoryDir is where a worker's files live if they fit: a file system in
// memory.
var memoryDir = "/dev/shm"

// NewWorker makes a folder to link in: in memory where it fits there,
// otherwise on the disk of the cache.
func (p *Kernel) NewWorker() (_ *Worker, err error) {
	room, held, takes, err := p.newMemoryRoom()
	if err == nil && held == nil {
		room, held, err = newRoom(p.Dir)
	}
	if err != nil {
		return nil, err
	}
	w := &Worker{kernel: p, room: room, held: held, takes: takes, dir: filepath.Join(room, buildName)}
	defer func() {
		if err != nil {
			err = errors.Join(err, w.Close())
		}
	}()
	if err := errors.Join(linkFarm(p.Source, room), os.Mkdir(w.dir, 0o755)); err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(p.Build)
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		if written.MatchString(e.Name()) {
			continue
		}
		if err := os.Symlink(filepath.Join(p.Build, e.Name()), filepath.Join(w.dir, e.Name())); err != nil {
			return nil, err
		}
	}
	if p.Image == "bzImage" {
		return w, w.bootFolder()
	}
	return w, nil
}

// written are the files that a link writes, or that stand for ones that it
// does: a link to them would write into the build.
var written = regexp.MustCompile(`^(\.?vmlinux(\.(o|map|relocs|unstripped|d|cmd|unstripped\.cmd|bin))?|\.tmp_vmlinux.*|\.btf\..*|System\.map|\.vmlinux\..*\.cmd)$`)

// Close removes the worker's folder, with the images that are left in it.
func (w *Worker) Close() error {
	var err error
	if w.object != nil {
		err = w.object.Close()
	}
	w.kernel.memory.Add(-int64(w.takes))
	return errors.Join(err, os.RemoveAll(w.room), w.held.Close())
}

// newMemoryRoom makes a room in memoryDir; held is nil where it does not fit
// beside the other workers, or could not serve.
func (p *Kernel) newMemoryRoom() (room string, held *os.File, takes uint64, err error) {
	if takes, err = p.files(); err != nil {
		return "", nil, 0, err
	}
	bytes, runs := free(memoryDir)
	all := p.memory.Add(int64(takes))
	if bytes > uint64(all)+takes && (runs || p.Image != "bzImage") { // whose makefiles run programs there
		if room, held, err = newRoom(memoryDir); err == nil {
			return room, held, takes, nil
		}
	}
	p.memory.Add(-int64(takes))
	return "", nil, 0, nil
}

// takeObject makes the worker's vmlinux.o the build's with some padding, in
// bytes behind each section given by index.
func (w *Worker) takeObject(padding map[int]uint64) error {
	path := filepath.Join(w.dir, "vmlinux.o")
	if w.object == nil {
		if err := os.RemoveAll(path); err != nil {
			return err
		}
		if len(padding) == 0 {
			return os.Symlink(filepath.Join(w.kernel.Build, "vmlinux.o"), path)
		}
		var err error
		if w.object, err = w.kernel.object.copyTo(path); err != nil {
			return err
		}
	}
	return w.object.pad(padding)
}

// handOut gives what was linked last a name that the next link leaves alone.
func (w *Worker) handOut(path string) (string, error) {
	w.images++
	out := filepath.Join(w.room, fmt.Sprintf("%s-%d", filepath.Base(path), w.images))
	return out, os.Rename(path, out)
}

// roomPrefix begins the name of a room, and of nothing else.
const roomPrefix = ".unlucky-room-"

// newRoom makes a folder in base and locks it for as long as the file is open.
func newRoom(base string) (string, *os.File, error) {
	for {
		dir, err := os.MkdirTemp(base, roomPrefix)
		if err != nil {
			return "", nil, err
		}
		held, err := lockRoom(dir)
		if err == nil {
			return dir, held, nil
		}
		if !errors.Is(err, os.ErrNotExist) && !errors.Is(err, unix.EWOULDBLOCK) {
			return "", nil, err
		} // somebody has taken it for a room that was left behind
	}
}

func lockRoom(dir string) (*os.File, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	if _, err := os.Stat(dir); err != nil { // gone between the two
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// removeRooms removes the rooms that killed runs of this user have left in base.
func removeRooms(base string) {
	rooms, _ := filepath.Glob(filepath.Join(base, roomPrefix+"*"))
	for _, dir := range rooms {
		var s unix.Stat_t
		if unix.Lstat(dir, &s) != nil || s.Mode&unix.S_IFMT != unix.S_IFDIR || int(s.Uid) != os.Getuid() {
			continue
		}
		if held, err := lockRoom(dir); err == nil { // else it is in use
			os.RemoveAll(dir)
			held.Close()
		}
	}
}

// free is how many bytes can be written to the file system in memory at dir,
// and whether programs run there; 0 if there is none.
func free(dir string) (bytes uint64, runs bool) {
	var s unix.Statfs_t
	if unix.Statfs(dir, &s) != nil {
		return 0, false
	}
	return min(s.Bavail*uint64(s.Bsize), AvailableMemory()), s.Flags&unix.ST_NOEXEC == 0
}

// files is the size in bytes of a worker's files at most: the object with its
// padding, and an image that is linked, one that waits, one that is booted, and
// the two that link-vmlinux.sh makes before the last.
func (p *Kernel) files() (uint64, error) {
	object, err := os.Stat(filepath.Join(p.Build, "vmlinux.o"))
	if err != nil {
		return 0, err
	}
	size, image := 2*object.Size(), object.Size() // or less, but for debug information
	if info, err := os.Stat(filepath.Join(p.Build, p.output())); err == nil {
		image = max(image, info.Size())
	}
	size += 5 * image
	if p.Image == "bzImage" {
		boot, err := diskUsage(filepath.Join(append([]string{p.Build}, bootDir...)...))
		if err != nil {
			return 0, err
		}
		size += 2 * boot
	}
	return uint64(size), nil
}

// WorkerMemory is how many bytes of memory a worker takes at most, lld and its
// files included. Measured with lld 22: 119 MB for a vmlinux.o of 15 MB, 520 MB
// for one of 118 MB.
func (p *Kernel) WorkerMemory() (uint64, error) {
	object, err := os.Stat(filepath.Join(p.Build, "vmlinux.o"))
	if err != nil {
		return 0, err
	}
	files, err := p.files()
	return 64<<20 + 4*uint64(object.Size()) + files, err
}

// AvailableMemory is how many bytes programs can still take: before the machine
// swaps (proc_meminfo(5), MemAvailable), and by the limit of the container
// (memory.max and memory.current of its cgroup). What can't be told is no bound.
func AvailableMemory() uint64 {
	bytes := uint64(math.MaxInt64)
	var kib, limit, used uint64
	if m := memAvailable.FindSubmatch(contents("/proc/meminfo")); m != nil {
		fmt.Sscan(string(m[1]), &kib)
		bytes = kib << 10
	}
	_, err1 := fmt.Sscan(string(contents("/sys/fs/cgroup/memory.max")), &limit) // "max" is none
	_, err2 := fmt.Sscan(string(contents("/sys/fs/cgroup/memory.current")), &used)
	if err1 == nil && err2 == nil {
		bytes = min(bytes, max(limit, used)-used)
	}
	return bytes
}

func contents(path string) []byte {
	data, _ := os.ReadFile(path) // empty where there is none
	return data
}

var memAvailable = regexp.MustCompile(`(?m)^MemAvailable:\s+(\d+) kB$`)
