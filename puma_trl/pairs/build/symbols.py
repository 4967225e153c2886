"""Signs that LaTeX has names for: the character of each command, and how much room signs have around them."""

# What kind a sign is says how much room it has: ordinary, binary, relation, opening, closing, punctuation, large
# operator, name of a function.
ORD, BIN, REL, OPEN, CLOSE, PUNCT, BIG, NAME = "ord", "bin", "rel", "open", "close", "punct", "big", "name"


def _pairs(text: str) -> dict[str, str]:
    words = text.split()
    return dict(zip(words[::2], words[1::2], strict=True))


LETTERS = _pairs(
    "alpha α beta β gamma γ delta δ epsilon ϵ varepsilon ε zeta ζ eta η theta θ vartheta ϑ iota ι kappa κ "
    "lambda λ mu μ nu ν xi ξ omicron ο pi π varpi ϖ rho ρ varrho ϱ sigma σ varsigma ς tau τ upsilon υ phi ϕ "
    "varphi φ chi χ psi ψ omega ω Gamma Γ Delta Δ Theta Θ Lambda Λ Xi Ξ Pi Π Sigma Σ Upsilon Υ Phi Φ Psi Ψ "
    "Omega Ω varDelta Δ varOmega Ω varGamma Γ Alpha Α Beta Β ell ℓ hbar ℏ imath ı jmath ȷ Re ℜ Im ℑ aleph ℵ "
    "wp ℘ partial ∂ nabla ∇ infty ∞ emptyset ∅ varnothing ∅ forall ∀ exists ∃ nexists ∄ neg ¬ lnot ¬ angle ∠ "
    "measuredangle ∡ sphericalangle ∢ triangle △ bigtriangleup △ vartriangle △ triangledown ▽ bigtriangledown "
    "▽ square □ Box □ blacksquare ■ Diamond ◇ lozenge ◊ diamondsuit ♢ heartsuit ♡ spadesuit ♠ clubsuit ♣ "
    "bigstar ★ star ⋆ parallelogram ▱ Circle ○ bigcirc ○ circledast ⊛ degree ° textdegree ° prime ′ backprime "
    "‵ ldots … dots … dotsc … dotso … hdots … textellipsis … cdots ⋯ dotsb ⋯ dotsm ⋯ dotsi ⋯ vdots ⋮ ddots ⋱ "
    "top ⊤ bot ⊥ because ∵ therefore ∴ checkmark ✓ yen ¥ pounds £ textsterling £ euro € texteuro € textdollar "
    "$ $ $ % % # # & & _ _ { { } } lbrace { rbrace } textbackslash \\ backslash \\ textasciitilde ~ "
    "textasciicircum ^ textunderscore _ textless < textgreater > textbar | textbraceleft { textbraceright } "
    "textquotedblleft “ textquotedblright ” textquoteleft ‘ textquoteright ’ textquotesingle ' textendash – "
    "textemdash — textbullet • textperiodcentered · S § P ¶ copyright © dag † ddag ‡ complement ∁ flat ♭ "
    "natural ♮ sharp ♯ blacktriangle ▲ blacktriangledown ▼ circledR ® mho ℧ eth ð i ı ss ß o ø O Ø ae æ AE Æ "
    "aa å AA Å angstrom Å ohm Ω celsius ℃ textmu µ cent ¢ textcent ¢ female ♀ male ♂ sun ☉ vert | lvert | "
    "rvert | Vert ‖ lVert ‖ rVert ‖ | ‖"
)
BINARY = _pairs(
    "times × div ÷ pm ± mp ∓ cdot · centerdot · ast ∗ circ ∘ bullet • cap ∩ cup ∪ setminus ∖ smallsetminus ∖ "
    "wedge ∧ land ∧ vee ∨ lor ∨ oplus ⊕ ominus ⊖ otimes ⊗ oslash ⊘ odot ⊙ uplus ⊎ sqcap ⊓ sqcup ⊔ dagger † "
    "ddagger ‡ amalg ⨿ diamond ⋄ ltimes ⋉ rtimes ⋊ minus −"
)
RELATIONS = _pairs(
    "le ≤ leq ≤ leqslant ⩽ ge ≥ geq ≥ geqslant ⩾ lt < gt > ne ≠ neq ≠ eq = ll ≪ gg ≫ approx ≈ approxeq ≊ sim "
    "∼ backsim ∽ thicksim ∼ simeq ≃ cong ≅ backcong ≌ equiv ≡ propto ∝ doteq ≐ asymp ≍ in ∈ notin ∉ ni ∋ "
    "subset ⊂ subseteq ⊆ supset ⊃ supseteq ⊇ subsetneq ⊊ subsetneqq ⊊ supsetneq ⊋ nsubseteq ⊈ nsubset ⊄ "
    "nsupseteq ⊉ sqsubseteq ⊑ parallel ∥ nparallel ∦ perp ⊥ mid ∣ nmid ∤ leqq ≦ geqq ≧ leftarrow ← gets ← "
    "rightarrow → to → leftrightarrow ↔ Leftarrow ⇐ Rightarrow ⇒ Leftrightarrow ⇔ longrightarrow ⟶ "
    "longleftarrow ⟵ Longrightarrow ⟹ Longleftarrow ⟸ implies ⟹ impliedby ⟸ iff ⟺ Longleftrightarrow ⟺ "
    "longleftrightarrow ⟷ mapsto ↦ longmapsto ⟼ hookrightarrow ↪ uparrow ↑ downarrow ↓ updownarrow ↕ Uparrow "
    "⇑ Downarrow ⇓ nearrow ↗ searrow ↘ swarrow ↙ nwarrow ↖ rightleftharpoons ⇌ rightharpoonup ⇀ "
    "leftrightarrows ⇆ rightrightarrows ⇉ models ⊨ vdash ⊢ dashv ⊣ smile ⌣ frown ⌢ bowtie ⋈ prec ≺ succ ≻ "
    "preceq ⪯ succeq ⪰ ngeq ≱ nleq ≰ nless ≮ ngtr ≯ ncong ≇ nsim ≁ triangleq ≜ coloneqq ≔ colon : "
    "trianglelefteq ⊴ triangleleft ◁ triangleright ▷ rightsquigarrow ⇝ nRightarrow ⇏ nrightarrow ↛ lesssim ≲ "
    "gtrsim ≳ between ≬"
)
LARGE = _pairs(
    "sum ∑ prod ∏ coprod ∐ bigcap ⋂ bigcup ⋃ bigvee ⋁ bigwedge ⋀ bigoplus ⨁ bigotimes ⨂ int ∫ iint ∬ iiint ∭ oint ∮"
)
FENCES = _pairs(
    "( ( ) ) [ [ ] ] | | / / < ⟨ > ⟩ lbrack [ rbrack ] lbrace { rbrace } { { } } lvert | rvert | vert | "
    "lVert ‖ rVert ‖ Vert ‖ langle ⟨ rangle ⟩ lfloor ⌊ rfloor ⌋ lceil ⌈ rceil ⌉ lgroup ( rgroup ) uparrow ↑ "
    "downarrow ↓ backslash ∖ lparen ( rparen )"
)
OPENING = dict.fromkeys("([{⟨⌊⌈", OPEN) | dict.fromkeys(")]}⟩⌋⌉", CLOSE)
NAMES = (
    "sin cos tan cot sec csc arcsin arccos arctan arccot sinh cosh tanh coth log ln lg exp lim max min sup "
    "inf gcd lcm det dim deg ker hom arg Pr limsup liminf mod argmax argmin tg ctg arctg arcctg sgn card Arg rank tr"
).split()
# Names and large operators whose limits stand above and below
STACKED = {"lim", "max", "min", "sup", "inf", "gcd", "Pr", "limsup", "liminf", "argmax", "argmin", *"∑∏∐⋂⋃⋁⋀⨁⨂"}

# Width in em of commands that are blank; of negative ones nothing is left, as letters must not touch
SPACES = {
    **dict.fromkeys(("quad", "enspace", "enskip"), 1.0),
    **dict.fromkeys((",", "thinspace"), 1 / 6),
    **dict.fromkeys((":", ">", "medspace"), 2 / 9),
    **dict.fromkeys((";", "thickspace"), 5 / 18),
    **dict.fromkeys((" ", "\n", "\t", "space", "nobreakspace", "nbsp"), 0.3),
    **dict.fromkeys(("!", "negthinspace", "/", "-"), 0.0),
    "qquad": 2.0,
}
# Commands without ink and without room, as far as one line goes
NOTHING = set(
    "displaystyle textstyle scriptstyle scriptscriptstyle limits nolimits allowbreak nobreak nonumber notag "
    "relax noindent indent centering raggedright hfill vfill hfil strut mathstrut null protect normalsize small "
    "large Large tiny footnotesize scriptsize huge Huge LARGE bigskip medskip smallskip break sloppy unskip "
    "ignorespaces "
    "mathop mathrel mathbin mathord mathpunct mathinner mathopen mathclose smash ensuremath vcenter hbox".split()
)
# Signs that are typed as they are
TYPED = {
    **dict.fromkeys("+−±∓×÷·∗∘∩∪∖∧∨⊕⊖⊗⊘", BIN),
    **dict.fromkeys("=<>≤≥≠≈≡∼∽≅≌∝∈∉∋⊂⊃⊆⊇⊊⊄∥∦⊥→←↔⇒⇐⇔⟹⟺↦⩽⩾≪≫≃:", REL),
    **dict.fromkeys(",;", PUNCT),
    **OPENING,
    **dict.fromkeys(LARGE.values(), BIG),
}
REPLACED = {"-": "−", "*": "∗", "'": "′", "`": "‘"}
# What `\not` makes of a sign; others are struck through
NEGATED = {
    "=": "≠",
    "∥": "∦",
    "∈": "∉",
    "⊂": "⊄",
    "⊆": "⊈",
    "≡": "≢",
    "<": "≮",
    ">": "≯",
    "∃": "∄",
    "∼": "≁",
    "≅": "≇",
}
NEGATED |= {"≤": "≰", "≥": "≱", "∣": "∤", "⊃": "⊅", "∋": "∌", "→": "↛", "⇒": "⇏"}

COMMANDS = {
    **{name: (sign, OPENING.get(sign, ORD)) for name, sign in FENCES.items() if name.isalpha()},
    **{name: (sign, OPENING.get(sign, ORD)) for name, sign in LETTERS.items()},
    **{name: (sign, BIN) for name, sign in BINARY.items()},
    **{name: (sign, REL) for name, sign in RELATIONS.items()},
    **{name: (sign, BIG) for name, sign in LARGE.items()},
    **{name: (name.replace("limsup", "lim sup").replace("liminf", "lim inf"), NAME) for name in NAMES},
}
