package evidence

import (
	"math"

	"gonum.org/v1/gonum/stat/distuv"
)

// Rate is how frequent a bug is among layouts that are booted once: one that
// does not crash in every boot is the rarer for that.
type Rate struct {
	Unlucky int     `json:"unlucky"`
	Of      int     `json:"of"`    // layouts, the baseline too
	Least   float64 `json:"least"` // with 90 % confidence
}

// Rate is that of the unlucky layouts.
func (r *Results) Rate() (rate Rate) {
	for _, t := range r.All() {
		if Booted(t.Kind) {
			rate.Of++
		}
		if t.Found {
			rate.Unlucky++
		}
	}
	if rate.Unlucky > 0 {
		rate.Least = AtLeast(rate.Unlucky, rate.Of)
	}
	return rate
}

// leastLayouts is how many layouts a fix is tried in however frequent the bug
// was: one that mends nine layouts in ten is none. With strategy cover so many
// bring each function to each residue mod 1024.
const leastLayouts = 64

// Layouts is how many layouts must pass for a conclusion.
func (r Rate) Layouts(confidence float64) int {
	return max(leastLayouts, PassesFor(r.Least, 1-confidence))
}

// Chance is that of n passes in a row at the rate.
func (r Rate) Chance(n int) float64 { return math.Pow(1-r.Least, float64(n)) }

// Most is the upper limit of a rate at which n trials in a row have passed
// (Clopper and Pearson's); 1 for none.
func Most(n int, confidence float64) float64 {
	if n == 0 {
		return 1
	}
	return 1 - math.Pow(1-confidence, 1/float64(n))
}

// flattered is the chance that a rate is lower than it is taken for.
const flattered = 0.1

// AtLeast is the lower limit of the rate of what has shown itself k times in n,
// k at least 1: Clopper and Pearson's of a binomial proportion. It is also that
// of trials which ended with the k-th.
func AtLeast(k, n int) float64 {
	return distuv.Beta{Alpha: float64(k), Beta: float64(n - k + 1)}.Quantile(flattered)
}

// PassesFor is how many passes in a row something that fails at a rate has with
// that chance, or less.
func PassesFor(rate, chance float64) int {
	return max(1, int(math.Ceil(math.Log(chance)/math.Log1p(-rate))))
}

// PassesAlike is how many passes in a row have that chance, or less, where k boots of n
// have failed: over all rates that there may be, each as likely as that makes it.
func PassesAlike(k, n int, chance float64) int {
	fails, passes := float64(k+1), float64(n-k+1)
	boots := 0
	for p := 1.0; p > chance; boots++ {
		p *= (passes + float64(boots)) / (fails + passes + float64(boots))
	}
	return boots
}
