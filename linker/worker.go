package linker

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"

	"unlucky/host"
	"unlucky/linker/kbuild"
)

// Worker links plans one after the other in a folder of its own, full of
// links to the build. Several workers link at the same time.
type Worker struct {
	kernel *Kernel
	room   string   // the folder that all it writes is in
	held   *os.File // the room, locked
	takes  uint64   // bytes that it may fill of memoryDir
	dir    string   // in the room; ".." from here must be the source, as it is from the build
	object *edited  // nil until something is padded
	images int      // handed out so far
	debug  *Worker  // of WithDebug
	files  []*deltaFile
}

// NewWorker makes a folder to link in: in memory where it fits there,
// otherwise on the disk of the cache.
func (p *Kernel) NewWorker() (_ *Worker, err error) {
	room, held, takes, err := p.newMemoryRoom()
	if err == nil && held == nil {
		room, held, err = host.NewRoom(p.Dir)
	}
	if err != nil {
		return nil, err
	}
	w := &Worker{kernel: p, room: room, held: held, takes: takes, dir: filepath.Join(room, kbuild.BuildName)}
	defer func() {
		if err != nil {
			err = roomFull(room, errors.Join(err, w.Close()))
		}
	}()
	if err := errors.Join(kbuild.LinkFarm(p.Source, room), os.Mkdir(w.dir, 0o755)); err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(p.Objtree)
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		if written.MatchString(e.Name()) {
			continue
		}
		if err := os.Symlink(filepath.Join(p.Objtree, e.Name()), filepath.Join(w.dir, e.Name())); err != nil {
			return nil, err
		}
	}
	if p.byMakefiles() {
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
	if w.debug != nil {
		err = errors.Join(err, w.debug.Close())
	}
	for _, f := range w.files {
		err = errors.Join(err, f.close())
	}
	w.kernel.memory.Add(-int64(w.takes))
	return errors.Join(err, os.RemoveAll(w.room), w.held.Close())
}

// takeObject makes the worker's vmlinux.o the build's with an edit.
func (w *Worker) takeObject(e edit) error {
	path := filepath.Join(w.dir, "vmlinux.o")
	if w.object == nil {
		if err := os.RemoveAll(path); err != nil {
			return err
		}
		if len(e.padding) == 0 && e.slots == nil {
			return os.Symlink(w.kernel.object.path, path)
		}
		var err error
		if w.object, err = w.kernel.object.copyTo(path); err != nil {
			return err
		}
	}
	err := w.object.edit(e)
	if err != nil { // half edited, perhaps: the next link begins with a new copy
		err = errors.Join(err, w.object.Close(), os.Remove(path))
		w.object = nil
	}
	return err
}

// handOut gives what was linked last a name that the next link leaves alone.
func (w *Worker) handOut(path string) (string, error) {
	out := w.nextName(path)
	return out, os.Rename(path, out)
}

// nextName is the name by which an image is handed out.
func (w *Worker) nextName(path string) string {
	w.images++
	w.kernel.linked.Store(true)
	return filepath.Join(w.room, fmt.Sprintf("%s-%d", filepath.Base(path), w.images))
}
