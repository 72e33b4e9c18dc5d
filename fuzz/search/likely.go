package search

import (
	"math"
	"math/bits"
)

// chances find one of some functions, or places, by boots of which those that pass prove
// nothing: the hybrid of a border crashes, now and then, where the one looked for stands
// before it. What has crashed rules out, what passes makes less likely, over all rates that
// there may be. The next boot is the one that tells the most.
type chances struct {
	fails, passes float64 // of a beta distribution of how often what fails crashes
	first         int     // the first border that has crashed
	passed        []int   // boots of each border
	booted        []bool  // borders
	unknown       []bool  // borders that gave another crash
	alone         []int   // boots that have passed of each by itself; nil where that is not asked
	left          int     // boots, after which it is given up

	others, enough         []float64  // chances that it is this one: with others before it, or by itself
	othersBoot, enoughBoot []nextBoot // what the next one of it is like then
}

// nextBoot is one after some that have passed.
type nextBoot struct {
	log     float64 // of the likelihood that those have passed: a quotient of beta functions
	rate    float64 // how likely it crashes
	entropy float64 // of that
}

// newChances are those of n where so many boots of what fails have crashed. Alone tells
// that each can be asked about by itself, too, and as likely as not fails so.
func newChances(n, boots, crashes int, alone bool) *chances {
	c := &chances{fails: float64(crashes + 1), passes: float64(boots - crashes + 1), first: n,
		passed: make([]int, n+1), booted: make([]bool, n+1), unknown: make([]bool, n+1), left: 20 * bits.Len(uint(n)),
		others: make([]float64, n), enough: make([]float64, n), othersBoot: make([]nextBoot, n), enoughBoot: make([]nextBoot, n),
	}
	if alone {
		c.alone = make([]int, n)
	}
	c.weigh()
	return c
}

// weigh makes the chances anew.
func (c *chances) weigh() {
	var after []nextBoot // so many passes
	passed := func(boots int) nextBoot {
		for len(after) <= boots {
			b := c.passes + float64(len(after))
			x, _ := math.Lgamma(b)
			y, _ := math.Lgamma(c.fails + b)
			rate := c.fails / (c.fails + b)
			after = append(after, nextBoot{x - y, rate, entropy(rate)})
		}
		return after[boots]
	}
	behind := 0 // boots that have passed with it before their border
	for _, boots := range c.passed[c.first+1:] {
		behind += boots
	}
	c.others, c.enough = c.others[:c.first], c.enough[:c.first]
	most, sum := math.Inf(-1), 0.0
	for i := c.first - 1; i >= 0; i-- {
		behind += c.passed[i+1]
		c.othersBoot[i] = passed(behind)
		c.others[i] = c.othersBoot[i].log
		most = max(most, c.others[i])
		c.enough[i] = math.Inf(-1)
		if c.alone != nil {
			c.enoughBoot[i] = passed(behind + c.alone[i])
			c.enough[i] = c.enoughBoot[i].log
		}
	}
	for i := range c.others {
		c.others[i], c.enough[i] = math.Exp(c.others[i]-most), math.Exp(c.enough[i]-most)
		sum += c.others[i] + c.enough[i]
	}
	for i := range c.others {
		c.others[i] /= sum
		c.enough[i] /= sum
	}
}

// best is the likeliest of those that need others, and how likely it is.
func (c *chances) best() (function int, chance float64) {
	for i, w := range c.others {
		if w > chance {
			function, chance = i, w
		}
	}
	return function, chance
}

// next is what to boot next, which tells the most, in bits: a border, or one by itself; the
// other one is -1. Both are where nothing is left that tells more.
func (c *chances) next() (border, function int) {
	border, function = -1, -1
	if c.left--; c.left < 0 {
		return border, function
	}
	most, crash, doubt := 0.0, 0.0, 0.0
	for i := range c.others {
		others, enough := c.othersBoot[i], c.enoughBoot[i]
		if bits := entropy(c.enough[i]*enough.rate) - c.enough[i]*enough.entropy; bits > most {
			most, border, function = bits, -1, i
		}
		crash += c.others[i]*others.rate + c.enough[i]*enough.rate
		doubt += c.others[i]*others.entropy + c.enough[i]*enough.entropy
		if bits := entropy(crash) - doubt; bits > most && i+1 < c.first && !c.unknown[i+1] {
			most, border, function = bits, i+1, -1
		}
	}
	return border, function
}

// boots is how many boots have passed of a border, or of one by itself.
func (c *chances) boots(border, function int) int {
	if border < 0 {
		return c.alone[function]
	}
	return c.passed[border]
}

// learn takes in a boot.
func (c *chances) learn(border, function int, answer Answer) {
	switch {
	case border < 0 && answer == Passes:
		c.alone[function]++
	case border < 0 && answer == Unknown:
		c.alone[function] += 100 // is asked no more
	case border < 0:
		return
	case answer == Passes:
		c.passed[border]++
	case answer == Fails:
		c.first = border
		c.fails++
	default:
		c.unknown[border] = true
	}
	if border >= 0 {
		c.booted[border] = true
	}
	c.weigh()
}

// entropy is that of an event of a chance, in bits.
func entropy(chance float64) float64 {
	if chance <= 0 || chance >= 1 {
		return 0
	}
	return -chance*math.Log2(chance) - (1-chance)*math.Log2(1-chance)
}
