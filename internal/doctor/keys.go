package doctor

import (
	"context"
	"fmt"
	"strings"
)

// Keys is what there is of the keys that wrap the data keys of encrypted volumes.
type Keys struct {
	Provider string   // who has them; "" if none is configured
	Wraps    string   // the key that wraps now
	Lacks    error    // why none wraps, although a provider is configured
	Problems []string // with single keys, and who may see them
	Volumes  int      // encrypted ones that have a copy here, or are attached here
	Unopened []string // why some of those can't be opened, by volume
	Unknown  error    // why it isn't known which volumes these are
}

// maxUnopened bounds how many volumes are named that can't be opened.
const maxUnopened = 10

func checkKeys(ctx context.Context, _ *Machine, o Options) (out []Finding) {
	if o.Keys == nil {
		return one(OK, "no configuration says where wrapping keys are")
	}
	k := o.Keys(ctx)
	for _, text := range k.Problems {
		out = append(out, Finding{
			State: Danger, Found: text, Why: "encrypted volumes can't be made or attached here without their wrapping keys; and who has these can read the volumes",
			Do: "put the keys right, as docs/ops/encryption.md has it: files of root alone (0400) in a directory of root alone (0700), the same on all nodes",
		})
	}
	if n := len(k.Unopened); n > 0 {
		text := strings.Join(k.Unopened[:min(n, maxUnopened)], "; ")
		if n > maxUnopened {
			text += fmt.Sprintf("; and %d more", n-maxUnopened)
		}
		out = append(out, Finding{
			State: Danger, Found: fmt.Sprintf("%d of %d encrypted volumes of this node can't be opened: %s", n, k.Volumes, text),
			Why: "they go on where they are attached now, and can't be attached here again", Do: "bring the wrapping keys here that are named, from another node or from where copies of them are kept",
		})
	}
	if k.Lacks != nil {
		out = append(out, Finding{
			State: Warning, Found: k.Lacks.Error(), Why: "encrypted volumes can't be made here, nor attached if they need that key",
			Do: "put a key there, the same on all nodes, or have the KMS plugin answer: docs/ops/encryption.md",
		})
	}
	switch {
	case len(out) > 0:
	case k.Provider == "" && k.Unknown != nil:
		return one(OK, "no encryption is configured")
	case k.Provider == "":
		return one(OK, "no encryption is configured, and no volume of this node needs a wrapping key")
	case k.Unknown != nil:
		return one(Note, "%s wraps; whether every key is here that this node's volumes need isn't known: %v", k.Wraps, k.Unknown)
	default:
		return one(OK, "%s wraps; all %d encrypted volumes of this node can be opened", k.Wraps, k.Volumes)
	}
	return out
}
