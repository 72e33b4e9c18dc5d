package fuzz

import (
	"context"
	"math/bits"
	"slices"
	"strings"

	"unlucky/seeds"
)

// rule finds out which residues of a culprit fail.
type rule struct {
	m       *Minimize
	culprit Culprit
	pieces  [][]int           // functions that touch move as one
	step    uint64            // bytes: what the alignment of the functions allows
	known   map[uint64]Answer // of the first piece, by how many bytes it is moved
	table   []seeds.Residue
}

// describe tells all that matters of a culprit: that it fails by itself, its
// modulus, and the table of its residues. The first culprit's plan becomes
// the result's.
func (m *Minimize) describe(ctx context.Context, c Culprit) error {
	h := m.hybrids
	r := &rule{m: m, culprit: c, step: minSlack, known: map[uint64]Answer{0: Fails}}
	for _, f := range c.Functions {
		if slices.Contains(c.Touching, f) && r.pieces != nil {
			last := &r.pieces[len(r.pieces)-1]
			*last = append(*last, f)
		} else {
			r.pieces = append(r.pieces, []int{f})
		}
		r.step = max(r.step, h.align[h.functions[f]])
	}
	out := seeds.Culprit{Alone: m.boots(m.choice(h, m.only(c), nil))}
	var names []string
	for i, f := range c.Functions {
		s := h.Section(f)
		names = append(names, FunctionName(s))
		out.Functions = append(out.Functions, seeds.Function{
			Name: names[i], Section: s.Name, Address: h.Address(f), Touching: slices.Contains(c.Touching, f) && i > 0,
			Moved: slices.Contains(r.pieces[0], f),
		})
	}
	if m.second != nil {
		out.Elsewhere = m.boots(m.choice(m.second, m.only(c), nil))
	}
	r.table = []seeds.Residue{{Boots: out.Alone}}
	m.Note("culprit: %s (%d of %d boots)", strings.Join(names, ", "), out.Alone.Crashes, out.Alone.Boots)
	first := m.result.Culprits == nil
	if first {
		m.keepAlone(c)
	}
	m.result.Culprits = append(m.result.Culprits, out)
	at := &m.result.Culprits[len(m.result.Culprits)-1]
	if !m.residues {
		return nil
	}
	err := r.find(ctx, names, at)
	if err == nil && first {
		m.twin(r, at)
	}
	return err
}

// keepAlone makes the plan of a culprit the best.
func (m *Minimize) keepAlone(c Culprit) {
	q := m.choice(m.hybrids, m.only(c), nil)
	for v := range variants {
		if p := q.plan(v); m.judge.known(p, "").Crashes > 0 {
			m.best = p
			return
		}
	}
}

// twin is the nearest plan that passes: the first piece of the culprit moved
// by as little as possible.
func (m *Minimize) twin(r *rule, at *seeds.Culprit) {
	if cure, ok := at.Cure(); ok {
		m.result.Twin = r.moved(r.pieces[:1], cure).plan(0)
	}
}

// find fills in the modulus and the table.
func (r *rule) find(ctx context.Context, names []string, at *seeds.Culprit) error {
	m := r.m
	at.Residues = r.table // as far as it goes, should the budget end
	if len(r.pieces) > 1 {
		m.asking(len(r.pieces), "may %s move together", strings.Join(names, " and "))
		var questions []question
		for _, n := range []uint64{1, 3, 13, 65} { // odd, and so different modulo any power of two
			questions = append(questions, r.moved(r.pieces, n*r.step%Modulus))
		}
		answers, err := m.judge.ask(ctx, true, questions...)
		if err != nil {
			return err
		}
		at.Together = !slices.Contains(answers, Passes) && !slices.Contains(answers, Unknown)
	}
	if f := r.pieces[0][0]; len(r.culprit.Functions) == 1 {
		i := m.hybrids.functions[f]
		r.known[(m.hybrids.pass[i]-m.hybrids.fail[i])%Modulus] = Passes
	}
	m.asking(1, "which modulus decides for %s", names[0])
	for d := uint64(Modulus / 2); d >= r.step; {
		var batch []uint64
		for ; d >= r.step && len(batch) < m.judge.workers; d /= 2 {
			batch = append(batch, d)
		}
		if err := r.ask(ctx, batch...); err != nil {
			return err
		}
		if slices.ContainsFunc(batch, func(d uint64) bool { return r.known[d] == Passes }) {
			break
		}
	}
	for modulus := uint64(0); modulus != r.explains(); {
		modulus = r.explains()
		var rows []uint64 // that are not known yet, coarse to fine
		for i := range modulus / r.step {
			d := bits.Reverse64(i) >> (64 - bits.TrailingZeros64(modulus/r.step)) * r.step
			if !slices.ContainsFunc(r.table, func(row seeds.Residue) bool { return row.Bytes%modulus == d }) {
				rows = append(rows, d)
			}
		}
		for batch := range slices.Chunk(rows, m.judge.workers) {
			m.asking(len(rows), "at which residues mod %#x does %s fail", modulus, names[0])
			if err := r.ask(ctx, batch...); err != nil {
				return err
			}
			at.Residues = r.table
			rows = rows[len(batch):]
		}
	}
	at.Settle(r.explains())
	return nil
}

// moved is the culprit alone, with some of its pieces moved.
func (r *rule) moved(pieces [][]int, bytes uint64) question {
	move := map[int]uint64{}
	for _, f := range slices.Concat(pieces...) {
		move[f] = bytes
	}
	return r.m.choice(r.m.hybrids, r.m.only(r.culprit), move)
}

// ask boots the culprit with its first piece moved.
func (r *rule) ask(ctx context.Context, moves ...uint64) error {
	var questions []question
	for _, d := range moves {
		questions = append(questions, r.moved(r.pieces[:1], d))
	}
	// Code that is overwritten may happen to do no harm.
	answers, err := r.m.judge.ask(ctx, r.culprit.Touching != nil, questions...)
	if err != nil {
		return err
	}
	for i, d := range moves {
		r.known[d] = answers[i]
		r.table = append(r.table, seeds.Residue{Bytes: d, Boots: r.m.boots(questions[i])})
	}
	return nil
}

// explains is the smallest modulus that explains every answer.
func (r *rule) explains() uint64 {
	for modulus := r.step; modulus < Modulus; modulus *= 2 {
		at := map[uint64]Answer{}
		clash := false
		for d, a := range r.known {
			if a == Unknown {
				continue
			}
			was, ok := at[d%modulus]
			clash = clash || ok && was != a
			at[d%modulus] = a
		}
		if !clash {
			return modulus
		}
	}
	return Modulus
}
