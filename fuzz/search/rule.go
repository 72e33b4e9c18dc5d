package search

import (
	"context"
	"math/bits"
	"slices"
	"strings"

	"unlucky/layout"
	"unlucky/seeds"
)

// rule finds out which residues of a culprit fail.
type rule struct {
	m       *Minimize
	culprit Culprit
	pieces  [][]int           // functions that touch move as one
	step    uint64            // bytes: what the alignment of the functions allows
	known   map[uint64]Answer // of the first piece, by how many bytes it is moved
	tried   map[uint64]bool   // moves that have been asked for, whatever the answer
	asked   map[uint64]bool   // moves that passed when they were asked for again
	sure    bool
	at      *seeds.Culprit
}

// describe tells all that matters of a culprit: that it fails by itself, its
// modulus, and the table of its residues. The first culprit's plan becomes
// the result's.
func (m *Minimize) describe(ctx context.Context, c Culprit) error {
	h := m.hybrids
	r := &rule{m: m, culprit: c, step: h.Step(), known: map[uint64]Answer{0: Fails}, tried: map[uint64]bool{}, asked: map[uint64]bool{}}
	// Code that is overwritten may happen to do no harm: several variants are booted.
	r.sure = c.Touching != nil && m.judge.missed() == 0
	for _, f := range c.Functions {
		if slices.Contains(c.Touching, f) && r.pieces != nil {
			last := &r.pieces[len(r.pieces)-1]
			*last = append(*last, f)
		} else {
			r.pieces = append(r.pieces, []int{f})
		}
		r.step = max(r.step, h.Alignment(f))
	}
	out := seeds.Culprit{Step: r.step, Alone: m.boots(m.choice(h, m.only(c), nil))}
	var names []string
	for i, f := range c.Functions {
		s := h.Section(f)
		names = append(names, s.FunctionName())
		out.Functions = append(out.Functions, seeds.Function{
			Name: names[i], Section: s.Name, Address: h.Address(f), Touching: slices.Contains(c.Touching, f) && i > 0,
			Moved: slices.Contains(r.pieces[0], f),
		})
	}
	if m.second != nil {
		out.Elsewhere = m.boots(m.choice(m.second, m.only(c), nil))
	}
	out.Residues = []seeds.Residue{{Boots: out.Alone}}
	m.Note("culprit: %s (%d of %d boots)", strings.Join(names, ", "), out.Alone.Crashes, out.Alone.Boots)
	first := m.result.Culprits == nil
	if first {
		m.keepAlone(c)
	}
	if c.Unsure {
		m.note("%s: another crash hid whether all of that is needed", strings.Join(names, ", "))
	}
	if last := h.Len() - 1; slices.Contains(c.Functions, last) {
		m.note("%s is the last that can be moved: what follows it, and cannot be moved by itself, may be meant", names[len(names)-1])
	}
	m.result.Culprits = append(m.result.Culprits, out)
	r.at = &m.result.Culprits[len(m.result.Culprits)-1]
	if !m.residues {
		return nil
	}
	find := r.find
	if h.Modulus() == layout.FarModulus {
		find = r.sample
	}
	err := find(ctx, names)
	if err == nil && first {
		m.twin(r)
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
func (m *Minimize) twin(r *rule) {
	if cure, ok := r.at.Cure(); ok {
		twin := r.moved(r.pieces[:1], cure).plan(0)
		m.result.Twin = &twin
	}
}

// find fills in the modulus and the table.
func (r *rule) find(ctx context.Context, names []string) error {
	m := r.m
	if len(r.pieces) > 1 {
		m.asking(len(r.pieces), "may %s move together", strings.Join(names, " and "))
		together, err := r.all(ctx, func(bytes uint64) question { return r.moved(r.pieces, bytes%layout.Modulus) })
		if err != nil {
			return err
		}
		r.at.Together = together
	}
	for {
		// First what makes the modulus larger, and so the table.
		for doubtful := r.doubtful(); doubtful != nil; doubtful = r.doubtful() {
			if err := r.again(ctx, names[0], doubtful); err != nil {
				return err
			}
		}
		rows, modulus := r.powers(), r.explains()
		switch {
		case len(rows) > 0:
			m.asking(1, "which modulus decides for %s", names[0])
		case modulus/r.step > r.maxTable():
			rows, r.at.Bounded = unsettled(r.known, r.step, modulus, m.judge.missed() == 0), true
			m.asking(len(rows), "at which residues mod %#x does %s fail", modulus, names[0])
		default:
			rows, r.at.Bounded = r.missing(), false
			m.asking(len(rows), "at which residues mod %#x does %s fail", modulus, names[0])
		}
		if len(rows) == 0 {
			break
		}
		if err := r.ask(ctx, rows[:min(len(rows), m.judge.workers)]...); err != nil {
			return err
		}
	}
	r.at.SetModulus(r.explains())
	return nil
}

// all tells whether it fails moved by each of some odd numbers of steps, which are no
// multiples of a power of two.
func (r *rule) all(ctx context.Context, moved func(bytes uint64) question) (bool, error) {
	for some := range slices.Chunk([]uint64{1, 3, 7, 13}, r.m.judge.workers) {
		var questions []question
		for _, n := range some {
			questions = append(questions, moved(n*r.step))
		}
		answers, err := r.m.judge.ask(ctx, true, questions...)
		if err != nil || slices.Contains(answers, Passes) || slices.Contains(answers, Unknown) {
			return false, err
		}
	}
	return true, nil
}

// powers are the moves to be asked next for the modulus: half a page, then the other
// powers of two, of which those below the modulus pass and the others fail where one residue
// decides, so they are bisected; and where nothing passes all of them, and last to where it
// is in the passing layout.
func (r *rule) powers() (moves []uint64) {
	half := uint64(layout.Modulus / 2)
	untried := func(d uint64) bool { return r.known[d] == Unknown && !r.tried[d] }
	if untried(half) {
		return []uint64{half}
	}
	passes, fails := r.step/2, uint64(layout.Modulus) // the largest below which all pass, the smallest above
	for d := r.step; d < layout.Modulus; d *= 2 {
		switch r.known[d] {
		case Passes:
			passes = d
		case Fails:
			if d < half { // it has told only that the modulus is not a page
				fails = min(fails, d)
			}
		}
	}
	for passes*2 < fails {
		middle := passes << (bits.Len64(fails/passes) / 2)
		if untried(middle) {
			return []uint64{middle}
		}
		fails = middle // neither passes nor fails
	}
	if r.that(Passes) == nil {
		for d := half; d >= r.step; d /= 2 {
			moves = append(moves, d)
		}
		moves = append(moves, r.m.hybrids.Moved(r.pieces[0][0]))
	}
	return slices.DeleteFunc(moves, func(d uint64) bool { return !untried(d) })
}

// sample fills in some lines of the table of a modulus that has too many: some of those
// of the powers of two, which tell how far the culprit has to be moved. Moved with
// all that stands behind it, a culprit that still fails does so by the distance.
func (r *rule) sample(ctx context.Context, names []string) error {
	m := r.m
	m.asking(1, "is it the distance of %s to what follows", names[0])
	together, err := r.all(ctx, func(bytes uint64) question {
		return question{plan: func(v int) layout.Plan { return m.hybrids.Shifted(m.only(r.culprit), v, bytes) }}
	})
	if err != nil {
		return err
	}
	r.at.Distance = together
	m.asking(1, "by how much does %s have to be moved", names[0])
	half := uint64(layout.FarModulus / 2)
	if err := r.ask(ctx, half); err != nil {
		return err
	}
	if r.known[half] == Passes { // mostly one range fails, and its border is bisected
		for fails, passes := r.step/2, half; passes > 2*fails; {
			middle := fails << (bits.Len64(passes/fails) / 2)
			if err := r.ask(ctx, middle); err != nil {
				return err
			}
			if r.known[middle] == Passes {
				passes = middle
			} else {
				fails = middle
			}
		}
	} else {
		var moves []uint64
		for d := half / 2; d >= r.step; d /= 2 {
			moves = append(moves, d)
		}
		if err := r.ask(ctx, moves...); err != nil {
			return err
		}
	}
	r.at.Sampled = true
	r.at.SetModulus(layout.FarModulus)
	return nil
}

// again asks with more care for passes that are doubtful.
func (r *rule) again(ctx context.Context, name string, doubtful []uint64) error {
	m, sure := r.m, r.sure
	m.asking(len(doubtful), "does %s pass there every time", name)
	r.sure = true
	doubts := 0
	if m.judge.missed() == 0 { // else that is known
		doubts = 1
	}
	m.judge.doubts += doubts
	err := r.ask(ctx, doubtful...)
	m.judge.doubts -= doubts
	r.sure = sure
	if err != nil {
		return err
	}
	for _, d := range doubtful {
		r.asked[d] = true
	}
	if !slices.ContainsFunc(doubtful, func(d uint64) bool { return r.known[d] == Fails }) {
		return nil
	}
	// Flaky, and not noticed before: the rate says how many boots a pass needs.
	need, _ := m.judge.need(false)
	if err := m.measure(ctx, 0); err != nil {
		return err
	}
	if now, _ := m.judge.need(false); now > need {
		clear(r.asked)
	}
	return r.ask(ctx, r.that(Passes)...)
}

// missing are the residues of the modulus that have not been booted, coarse to
// fine.
func (r *rule) missing() (rows []uint64) {
	modulus := r.explains()
	for i := range modulus / r.step {
		d := bits.Reverse64(i) >> (64 - bits.TrailingZeros64(modulus/r.step)) * r.step
		if !slices.ContainsFunc(r.at.Residues, func(row seeds.Residue) bool { return row.Bytes%modulus == d }) {
			rows = append(rows, d)
		}
	}
	return rows
}

// maxTable is how many residues are all booted: those mod 256 in steps of 16. Of 512 bytes there are 32, and of a
// page's 256: those would be most of the boots of all. It is fewer of several functions,
// and where each takes many boots.
func (r *rule) maxTable() uint64 {
	most := 16 / uint64(len(r.pieces))
	if r.m.judge.missed() > 0 {
		return most / 4
	}
	return most
}

// unsettled are the moves to be asked next, in bytes, where a modulus has too many
// residues to boot each: those by powers of two, which tell what bits of the
// address decide (where they are asked for: that takes a dozen passes), and the borders of the range around the culprit's own residue.
// They are galloped to, so that what fails far away is not taken for a part of it, and
// then bisected. known are the answers, by how far the culprit is moved.
func unsettled(known map[uint64]Answer, step, modulus uint64, powers bool) (moves []uint64) {
	at := map[uint64]Answer{}
	for d, a := range known {
		at[d%modulus] = a
	}
	ask := func(d uint64) {
		if d %= modulus; !slices.Contains(moves, d) {
			moves = append(moves, d)
		}
	}
	for d := modulus / 2; d >= step && powers; d /= 2 {
		if _, ok := at[d]; !ok {
			ask(d)
		}
	}
	for _, sign := range []uint64{1, modulus - 1} { // up, down
		nearest := modulus // that does not fail
		for d, a := range at {
			if a != Fails {
				nearest = min(nearest, d*sign%modulus)
			}
		}
		galloped := true
		for d := step; d < nearest && galloped; d *= 2 {
			if _, galloped = at[d*sign%modulus]; !galloped {
				ask(d * sign)
			}
		}
		if !galloped || nearest == modulus {
			continue
		}
		var fails uint64
		for d, a := range at {
			if d = d * sign % modulus; a == Fails && d < nearest {
				fails = max(fails, d)
			}
		}
		if nearest-fails > step {
			ask((fails + nearest) / 2 / step * step * sign)
		}
	}
	return moves
}

// that are the moves with an answer, in order.
func (r *rule) that(answer Answer) (moves []uint64) {
	for d, a := range r.known {
		if a == answer {
			moves = append(moves, d)
		}
	}
	slices.Sort(moves)
	return moves
}

// doubtful are passes but for which half the modulus would explain all, if they
// have not been asked for again: a few of them.
func (r *rule) doubtful() (moves []uint64) {
	half := r.explains() / 2
	if half < r.step {
		return nil
	}
	fails := r.that(Fails)
	for _, d := range r.that(Passes) {
		if !r.asked[d] && slices.ContainsFunc(fails, func(f uint64) bool { return f%half == d%half }) {
			moves = append(moves, d)
		}
	}
	return moves[:min(4, len(moves))]
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
		q := r.moved(r.pieces[:1], d)
		if r.culprit.Touching != nil {
			q.variants = 2
		}
		questions = append(questions, q)
	}
	answers, err := r.m.judge.ask(ctx, r.sure, questions...)
	if err != nil {
		return err
	}
	for i, d := range moves {
		r.known[d], r.tried[d] = answers[i], true
		row := seeds.Residue{Bytes: d, Boots: r.m.boots(questions[i])}
		if i := slices.IndexFunc(r.at.Residues, func(r seeds.Residue) bool { return r.Bytes == d }); i >= 0 {
			r.at.Residues[i] = row
		} else {
			r.at.Residues = append(r.at.Residues, row)
		}
	}
	return nil
}

// explains is the smallest modulus that explains every answer.
func (r *rule) explains() uint64 {
	for modulus := r.step; modulus < layout.Modulus; modulus *= 2 {
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
	return layout.Modulus
}
