package fuzz

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"

	"unlucky/autopsy"
	"unlucky/qemu"
)

// Healed is what the failing image has shown with its damage mended in memory.
type Healed struct {
	Kind   qemu.Kind `json:"kind,omitempty"` // empty where nothing could be mended
	Title  string    `json:"title,omitempty"`
	Mended []string  `json:"mended"`         // "d_alloc+0x79"
	Left   []string  `json:"left,omitempty"` // what was not mended, and why
}

// mending is what is to be written in place of what is damaged.
type mending struct {
	name    string
	address uint64
	was, is []byte
	done    bool
}

// heal boots an image, stopped each time that it writes to a damaged place, has the
// right code written there as soon as the damage is done, and tells what it shows then.
func (g *Guest) heal(ctx context.Context, image string, body, twin *Body, all []*autopsy.Damage) (*Healed, error) {
	h := &Healed{}
	var todo []*mending
	for _, d := range all {
		is, err := body.Run.Mended(d, twin.Run)
		if err != nil {
			h.Left = append(h.Left, err.Error())
			continue
		}
		was, err := hex.DecodeString(d.Memory.Bytes)
		if err != nil {
			return nil, err
		}
		todo = append(todo, &mending{name: fmt.Sprintf("%s+%#x", d.Function, d.Offset), address: d.Address, was: was[:len(is)], is: is})
	}
	if todo == nil {
		return h, nil
	}
	debugger, err := qemu.NewDebugger()
	if err != nil {
		return nil, err
	}
	defer debugger.Close()
	ended := make(chan error, 1)
	go func() { ended <- mend(debugger, todo) }()
	m := g.with(image, "")
	m.Debugger = debugger
	unshare := g.Share()
	r, err := g.run(m, ctx, g.Expect)
	unshare()
	debugger.Close()
	mended := <-ended
	switch {
	case err != nil:
		return nil, err
	case r.Kind == qemu.Infra:
		return nil, fmt.Errorf("QEMU failed: %s", r.Reason)
	case !errors.Is(mended, qemu.ErrEnded):
		return nil, fmt.Errorf("mending the guest's memory: %w", mended)
	}
	for _, m := range todo {
		if m.done {
			h.Kind, h.Title, h.Mended = r.Kind, r.Title, append(h.Mended, m.name)
		} else {
			h.Left = append(h.Left, m.name+" was not seen to be damaged in that boot")
		}
	}
	return h, nil
}

// mend goes on until the guest has ended. A patch may be written byte by byte: what was
// mended is written again when more of it comes.
func mend(d *qemu.Debugger, todo []*mending) error {
	for _, m := range todo {
		if err := d.Watch(m.address, len(m.is)); err != nil {
			return err
		}
	}
	for {
		if err := d.Continue(); err != nil {
			return err
		}
		for _, m := range todo {
			now, err := d.Read(m.address, len(m.is))
			if err != nil {
				return err
			}
			if !m.done && !bytes.Equal(now, m.was) || bytes.Equal(now, m.is) {
				continue
			}
			if err := d.Write(m.address, m.is); err != nil {
				return err
			}
			m.done = true
		}
	}
}
