package fuzz

import (
	"context"
	"errors"
	"fmt"

	"unlucky/linker"
)

// A Kernel is linked again and again; *linker.Kernel, seen from here.
type Kernel interface {
	// Layout is the baseline's, in output order.
	Layout(context.Context) ([]linker.Section, error)
	// Randomizes tells whether the linker has lld's flag.
	Randomizes() bool
	// Tables counts the arrays that the linker builds in the image.
	Tables() (int, error)
	// Linker makes a place to link in; several link at the same time.
	Linker() (Linker, error)
}

// Linker links one plan after the other.
type Linker interface {
	// Link's error is a *linker.LinkError if the layout does not link.
	Link(context.Context, linker.Plan) (linker.Image, error)
	Close() error
}

// resolve decides what auto stands for by linking the first seed with lld's
// own padding; note is told why.
func resolve(ctx context.Context, s Strategy, k Kernel, seed uint32, note func(string, ...any)) (Strategy, error) {
	if s == Shuffle && seed == 0 {
		return "", errors.New("strategy shuffle: seed 0 means another order each time to lld: begin with seed 1")
	}
	if s != Auto && s != LLD {
		return s, nil
	}
	if !k.Randomizes() {
		if s == LLD {
			return "", errors.New("this lld has no --randomize-section-padding: LLVM 20 and later have it")
		}
		note("strategy cover: this lld has no --randomize-section-padding")
		return Cover, nil
	}
	tables, err := k.Tables()
	if err != nil {
		return "", err
	}
	if s == LLD {
		if tables > 0 {
			note("warning: strategy lld pads data too, inside the %d tables that the linker builds: expect false crashes", tables)
		}
		return s, nil
	}
	l, err := k.Linker()
	if err != nil {
		return "", err
	}
	defer l.Close()
	_, err = l.Link(ctx, LLD.Plan(seed, nil))
	var failed *linker.LinkError
	switch {
	case errors.As(err, &failed) && failed.LayoutFault():
		note("strategy cover: seed %d does not link when lld pads everything (%s)", seed, failed.Reason)
		return Cover, nil
	case err != nil:
		return "", fmt.Errorf("linking seed %d with --randomize-section-padding: %w", seed, err)
	case tables > 0:
		note("strategy cover: seed %d links when lld pads everything, but then the %d tables that the linker builds are padded inside, and crash a correct kernel", seed, tables)
		return Cover, nil
	}
	return LLD, nil
}
