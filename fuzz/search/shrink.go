package search

import (
	"context"
	"slices"

	"unlucky/layout"
	"unlucky/seeds"
)

// Shrink drops paddings of a failing plan for as long as what remains fails
// (delta debugging). Dropping a padding moves all that follows; merging it
// into the next one that survives keeps what follows that: both are offered.
// What it returns beside an error fails too, and is the best so far.
func Shrink(ctx context.Context, paddings []layout.Padding, ask func(context.Context, ...[]layout.Padding) ([]Answer, error)) ([]layout.Padding, error) {
	return shrink(ctx, paddings, func(rest, dropped []layout.Padding, at int) [][]layout.Padding {
		if at == len(rest) {
			return nil
		}
		merged := slices.Clone(rest)
		for _, p := range dropped {
			merged[at].Bytes += p.Bytes
		}
		return [][]layout.Padding{merged}
	}, ask)
}

// shrink drops items for as long as what remains fails; more offers what else
// could stand in for some that are dropped before place at of the rest.
func shrink[T any](ctx context.Context, items []T, more func(rest, dropped []T, at int) [][]T, ask func(context.Context, ...[]T) ([]Answer, error)) ([]T, error) {
	for size := (len(items) + 1) / 2; size > 0; size /= 2 {
		for changed := true; changed; {
			changed = false
			for first := 0; first < len(items); {
				last := min(first+size, len(items))
				rest := slices.Concat(items[:first], items[last:])
				offers := append([][]T{rest}, more(rest, items[first:last], first)...)
				answers, err := ask(ctx, offers...)
				if err != nil {
					return items, err
				}
				if i := slices.Index(answers, Fails); i >= 0 {
					items, changed = offers[i], true
				} else {
					first = last
				}
			}
			changed = changed && size == 1 // the last size until nothing changes
		}
	}
	return items, nil
}

// near makes the passing layout fail by as little as that takes, which is the best answer:
// the first culprit at its residue, with all else where it passes. It tells whether that
// is so.
func (m *Minimize) near(ctx context.Context, c Culprit, at *seeds.Culprit) (bool, error) {
	h := m.hybrids
	if !h.Ordered() || at.Modulus == 0 || at.Sampled {
		return false, nil
	}
	plan := h.Nearest(c.Functions, c.Touching, at.Modulus, at.Together)
	m.asking(1, "does it fail with the least of paddings")
	answers, err := m.judge.ask(ctx, false, planned(plan, ""))
	if err != nil || answers[0] != Fails {
		return false, err
	}
	m.best, m.result.Twin = plan, &m.passes
	return true, nil
}

// trim makes the best plan, of a few paddings, smaller: what stands behind the
// culprit may move, and a padding be shorter by the modulus.
func (m *Minimize) trim(ctx context.Context, c *seeds.Culprit) error {
	ask := func(paddings []layout.Padding) (Answer, error) {
		m.asking(len(m.best.Paddings), "which paddings are needed")
		answers, err := m.judge.ask(ctx, false, planned(layout.Plan{Order: m.best.Order, Paddings: paddings}, ""))
		if err != nil {
			return Unknown, err
		}
		return answers[0], nil
	}
	var short []layout.Padding
	last := c.Functions[len(c.Functions)-1].Section
	for _, p := range m.best.Paddings {
		if c.Modulus > 0 {
			p.Bytes %= c.Modulus
		}
		if p.Bytes > 0 {
			short = append(short, p)
		}
		if p.Section == last {
			break
		}
	}
	answer, err := ask(short)
	if err != nil {
		return err
	}
	if answer == Fails {
		m.best.Paddings = short
	}
	if len(m.best.Paddings) > 1 {
		if err := m.shrink(ctx); err != nil {
			return err
		}
	}
	cure, ok := c.Cure()
	i := slices.IndexFunc(m.best.Paddings, func(p layout.Padding) bool {
		return slices.ContainsFunc(c.Functions, func(f seeds.Function) bool { return f.Section == p.Section })
	})
	if !ok || i < 0 {
		return nil
	}
	twin := slices.Clone(m.best.Paddings)
	twin[i].Bytes += cure
	if answer, err = ask(twin); answer == Passes {
		m.result.Twin = &layout.Plan{Order: m.best.Order, Paddings: twin}
	}
	return err
}

// shrink drops what the best plan does not need of its order and its paddings.
func (m *Minimize) shrink(ctx context.Context) error {
	before := len(m.best.Order)
	order, err := shrink(ctx, m.best.Order, func([]string, []string, int) [][]string { return nil }, func(ctx context.Context, offers ...[]string) ([]Answer, error) {
		m.asking(len(m.best.Order), "which functions have to be out of place")
		questions := make([]question, len(offers))
		for i, o := range offers {
			questions[i] = planned(layout.Plan{Order: o, Paddings: m.best.Paddings}, "")
		}
		return m.judge.ask(ctx, false, questions...)
	})
	m.best.Order = order
	if err != nil {
		return err
	}
	if before > len(order) {
		m.Note("%d of %d functions have to be out of place", len(order), before)
	}
	before = len(m.best.Paddings)
	paddings, err := Shrink(ctx, m.best.Paddings, func(ctx context.Context, offers ...[]layout.Padding) ([]Answer, error) {
		m.asking(len(m.best.Paddings), "which paddings are needed")
		questions := make([]question, len(offers))
		for i, p := range offers {
			questions[i] = planned(layout.Plan{Order: m.best.Order, Paddings: p}, "")
		}
		return m.judge.ask(ctx, false, questions...)
	})
	m.best.Paddings = paddings
	if err == nil && before > len(paddings) {
		m.Note("%d of %d paddings are needed", len(paddings), before)
	}
	return err
}
