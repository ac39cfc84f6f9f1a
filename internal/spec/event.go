package spec

import (
	"fmt"
	"time"
)

// Event is something that happened and that a person may want to know of later. Events are kept in the metadata, the newest
// MaxEvents that ask for attention and the newest MaxEvents others.
type Event struct {
	Time time.Time `json:"time"`
	// What is a short word for the sort of event, such as "scrub-ended".
	What string `json:"what"`
	// Warning: it asks for a person's attention.
	Warning bool `json:"warning,omitempty"`
	// Volume is a name; Node and Pool are where it happened, if that matters.
	Volume  string `json:"volume,omitempty"`
	Node    string `json:"node,omitempty"`
	Pool    string `json:"pool,omitempty"`
	Message string `json:"message"`
}

// String is the event in one line, without its time.
func (e Event) String() string {
	where := ""
	if e.Volume != "" {
		where = " volume " + e.Volume
	}
	return fmt.Sprintf("%s%s: %s", e.What, where, e.Message)
}

// MaxEvents is how many events of either sort are kept.
const MaxEvents = 200

// maxEventMessage bounds an event's size.
const maxEventMessage = 300

// AddEvent returns the events with one more, the oldest first, without those that are too many.
func AddEvent(list []Event, e Event) []Event {
	if len(e.Message) > maxEventMessage {
		e.Message = e.Message[:maxEventMessage]
	}
	kept := make([]Event, 0, len(list)+1)
	room := map[bool]int{true: MaxEvents, false: MaxEvents}
	room[e.Warning]--
	for i := len(list) - 1; i >= 0; i-- {
		if o := list[i]; room[o.Warning] > 0 {
			room[o.Warning]--
			kept = append(kept, o)
		}
	}
	for i, j := 0, len(kept)-1; i < j; i, j = i+1, j-1 {
		kept[i], kept[j] = kept[j], kept[i]
	}
	return append(kept, e)
}
