// Package linker makes kernel images of chosen layouts: it pads and orders input
// sections of a build's vmlinux.o by a [layout.Plan], and links each plan with the
// kernel's own link-vmlinux.sh or, once that is proven to give the same image, in
// one pass of lld.
//
// It does not know where a plan comes from, nor what becomes of an image.
package linker

import (
	"context"
	"errors"
	"path/filepath"
	"sync"
	"sync/atomic"

	"unlucky/layout"
	"unlucky/linker/kbuild"
	"unlucky/scenarios"
)

// Kernel is a build that is linked again and again, with any plan and without make.
type Kernel struct {
	*kbuild.Build

	// FullScript has each layout linked by the whole of link-vmlinux.sh, which
	// makes a System.map; a packed kernel makes that without. Set it before the
	// first link.
	FullScript bool
	// Note, if set, is told what a person would want to know, in lines.
	Note func(format string, a ...any)

	object    *object
	layoutMu  sync.Mutex
	layout    []layout.Section // of the baseline, in output order; nil until asked for
	functions *functions       // of the layout
	onePass   onePassState     // without one until the layout is known
	links     atomic.Int64     // the short way
	linked    atomic.Bool      // an image was handed out
	memory    atomic.Int64     // bytes that workers may fill of memoryDir
	took      atomic.Int64     // by the baseline's link, CPU time in ns; 0 until there was one

	packed *manifest // of a kernel that Open has opened
}

// Open makes a build ready to be linked. The kernel is closed with it.
func Open(b *kbuild.Build) (*Kernel, error) {
	object, err := openObject(filepath.Join(b.Objtree, "vmlinux.o"))
	return &Kernel{Build: b, object: object}, err
}

// PrepareKernel makes the build that k describes, below cache, and opens it.
func Prepare(ctx context.Context, cache string, k scenarios.Kernel, progress kbuild.Progress) (*Kernel, error) {
	b, err := kbuild.Prepare(ctx, cache, k, progress)
	if err != nil {
		return nil, err
	}
	p, err := Open(b)
	if err != nil {
		return nil, errors.Join(err, b.Close())
	}
	return p, nil
}
