package linker

import (
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"unlucky/host"
	"unlucky/linker/kbuild"
)

// newMemoryRoom makes a room in memoryDir; held is nil where it does not fit
// beside the other workers, or could not serve.
func (p *Kernel) newMemoryRoom() (room string, held *os.File, takes uint64, err error) {
	if takes, err = p.files(); err != nil {
		return "", nil, 0, err
	}
	bytes, runs := free(host.MemoryDir)
	all := p.memory.Add(int64(takes))
	if bytes > uint64(all)+takes && (runs || !p.byMakefiles()) { // whose makefiles run programs there
		if room, held, err = host.NewRoom(host.MemoryDir); err == nil {
			return room, held, takes, nil
		}
	}
	p.memory.Add(-int64(takes))
	return "", nil, 0, nil
}

// free is how many bytes can be written to the file system in memory at dir,
// and whether programs run there; 0 if there is none.
func free(dir string) (bytes uint64, runs bool) {
	var s unix.Statfs_t
	if unix.Statfs(dir, &s) != nil {
		return 0, false
	}
	return min(s.Bavail*uint64(s.Bsize), host.AvailableMemory()), s.Flags&unix.ST_NOEXEC == 0
}

// files is the size in bytes of a worker's files at most: the object with its
// padding, and an image that is linked, one that waits, one that is booted, and
// the two that link-vmlinux.sh makes before the last; beside them the three that
// delta links write in turn.
func (p *Kernel) files() (uint64, error) {
	object, err := os.Stat(p.object.path)
	if err != nil {
		return 0, err
	}
	size, image := 2*object.Size(), object.Size() // or less, but for debug information of a kernel with BTF
	if info, err := os.Stat(filepath.Join(p.Objtree, p.output())); err == nil && p.object.path == filepath.Join(p.Objtree, "vmlinux.o") {
		image = max(image, info.Size())
	}
	size += 5 * image
	if p.deltas(padded) && p.noDelta() == nil {
		size += 3 * image
	}
	if p.flat {
		size += 3 * image
	}
	if p.byMakefiles() {
		boot, err := kbuild.DiskUsage(filepath.Join(p.Objtree, filepath.Dir(p.BootFile())))
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
	object, err := os.Stat(p.object.path)
	if err != nil {
		return 0, err
	}
	files, err := p.files()
	return 64<<20 + 4*uint64(object.Size()) + files, err
}
