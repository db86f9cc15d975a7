// Package docs holds the pages that obx prints, as `obx help spec`. They are written for a terminal and for a reader of Markdown alike: one
// text for both, so that they cannot differ.
package docs

import _ "embed" // the pages

// Spec tells the language of specs.
//
//go:embed spec.md
var Spec string
