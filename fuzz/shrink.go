package fuzz

import (
	"context"
	"slices"

	"unlucky/linker"
	"unlucky/seeds"
)

// Shrink drops paddings of a failing plan for as long as what remains fails
// (delta debugging). Dropping a padding moves all that follows; merging it
// into the next one that survives keeps what follows that: both are offered.
// What it returns beside an error fails too, and is the best so far.
func Shrink(ctx context.Context, paddings []linker.Padding, ask func(context.Context, ...[]linker.Padding) ([]Answer, error)) ([]linker.Padding, error) {
	for size := (len(paddings) + 1) / 2; size > 0; size /= 2 {
		for changed := true; changed; {
			changed = false
			for first := 0; first < len(paddings); {
				last := min(first+size, len(paddings))
				offers := [][]linker.Padding{slices.Concat(paddings[:first], paddings[last:])}
				if last < len(paddings) {
					merged := slices.Clone(offers[0])
					for _, p := range paddings[first:last] {
						merged[first].Bytes += p.Bytes
					}
					offers = append(offers, merged)
				}
				answers, err := ask(ctx, offers...)
				if err != nil {
					return paddings, err
				}
				if i := slices.Index(answers, Fails); i >= 0 {
					paddings, changed = offers[i], true
				} else {
					first = last
				}
			}
			changed = changed && size == 1 // the last size until nothing changes
		}
	}
	return paddings, nil
}

// trim makes the best plan, of a few paddings, smaller: what stands behind the
// culprit may move, and a padding be shorter by the modulus.
func (m *Minimize) trim(ctx context.Context, c *seeds.Culprit) error {
	ask := func(paddings []linker.Padding) (Answer, error) {
		m.asking(len(m.best.Paddings), "which paddings are needed")
		answers, err := m.judge.ask(ctx, false, planned(linker.Plan{Order: m.best.Order, Paddings: paddings}, ""))
		if err != nil {
			return Unknown, err
		}
		return answers[0], nil
	}
	var short []linker.Padding
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
	i := slices.IndexFunc(m.best.Paddings, func(p linker.Padding) bool {
		return slices.ContainsFunc(c.Functions, func(f seeds.Function) bool { return f.Section == p.Section })
	})
	if !ok || i < 0 {
		return nil
	}
	twin := slices.Clone(m.best.Paddings)
	twin[i].Bytes += cure
	if answer, err = ask(twin); answer == Passes {
		m.result.Twin = &linker.Plan{Order: m.best.Order, Paddings: twin}
	}
	return err
}

// shrink drops paddings of the best plan.
func (m *Minimize) shrink(ctx context.Context) error {
	before := len(m.best.Paddings)
	paddings, err := Shrink(ctx, m.best.Paddings, func(ctx context.Context, offers ...[]linker.Padding) ([]Answer, error) {
		m.asking(len(m.best.Paddings), "which paddings are needed")
		questions := make([]question, len(offers))
		for i, p := range offers {
			questions[i] = planned(linker.Plan{Order: m.best.Order, Paddings: p}, "")
		}
		return m.judge.ask(ctx, false, questions...)
	})
	m.best.Paddings = paddings
	if err == nil && before > len(paddings) {
		m.Note("%d of %d paddings are needed", len(paddings), before)
	}
	return err
}
