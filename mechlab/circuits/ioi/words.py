"""Sentences, names, places and things for IOI prompts: our own, in the manner of Wang et al. 2022."""

# Of one shape: with one token a word, names at 2 and 4, the subject again at 10, the end at 14. Quick to run
# together.
ALIGNED = (
    "When {first} and {second} walked to the {place}, {subject} gave a {object} to",
    "After {first} and {second} arrived at the {place}, {subject} handed a {object} to",
    "While {first} and {second} waited in the {place}, {subject} passed a {object} to",
    "Once {first} and {second} sat in the {place}, {subject} showed a {object} to",
    "Because {first} and {second} met at the {place}, {subject} brought a {object} to",
    "Before {first} and {second} left for the {place}, {subject} offered a {object} to",
    "Although {first} and {second} argued in the {place}, {subject} sold a {object} to",
    "Today {first} and {second} went to the {place}, {subject} gave a {object} to",
)
# Of other shapes and lengths.
OTHERS = (
    "Then {first} and {second} had a long walk near the {place}, and {subject} decided to give a {object} to",
    "The friends {first} and {second} found a {object} near the {place}. In the end {subject} gave it to",
    "Late in the evening {first} and {second} had an argument. After a while {subject} said sorry to",
    "On Monday {first} and {second} worked at the {place} and {subject} wrote a long letter to",
    "At the {place}, {first} and {second} looked for a {object}, and soon {subject} pointed it out to",
    "As {first} and {second} were leaving the {place}, {subject} threw the {object} to",
    "It was cold when {first} and {second} came to the {place}, so {subject} gave a {object} to",
    "Last year {first} and {second} ran the {place} together. This year {subject} left all of it to",
)
TEMPLATES = ALIGNED + OTHERS

NAMES = """
    James John Robert Michael David William Richard Joseph Thomas Charles Daniel Matthew Anthony Paul
    Steven Andrew George Kevin Brian Edward Jason Ryan Jacob Eric Stephen Larry Scott Benjamin Samuel
    Gregory Alexander Patrick Jack Dennis Tyler Aaron Adam Nathan Henry Peter Walter Carl Simon Oliver
    Arthur Louis Philip Bruce Martin Keith Leo Tom Jim Joe Luke Ian Sean Chris Mary Patricia Jennifer
    Linda Elizabeth Barbara Susan Jessica Sarah Karen Lisa Nancy Sandra Margaret Emily Michelle Carol
    Amanda Melissa Stephanie Rebecca Sharon Laura Dorothy Amy Angela Emma Nicole Anna Samantha Katherine
    Christine Helen Rachel Maria Catherine Heather Diane Olivia Julie Victoria Ruth Lauren Kelly Christina
    Andrea Hannah Martha Sara Sophia Alice Isabella Julia Charlotte Diana Kate Jane Lucy Claire Ella Jenny
    Molly Clara Ellen Sally Annie
""".split()  # noqa: SIM905 - a list of 124 lines reads worse
PLACES = """
    store school park office hospital station garden beach kitchen library market museum
""".split()  # noqa: SIM905
OBJECTS = """
    book ring drink key ticket flower basket camera necklace watch blanket lamp
""".split()  # noqa: SIM905
