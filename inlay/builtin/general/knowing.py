"""What is known without being told, and what was just read: word forms, facts, paraphrases, short passages.

Written by hand. Facts are such that do not change. The wrong choices of a paraphrase reuse the sentence's own
words, so that counting words does not help.
"""

from __future__ import annotations

from random import Random

from inlay.builtin.general.question import Question, chosen, exact, lines, places

FORMS = {
    "What is the plural of {w}?": lines("""
        mouse | mice | mouses
        child | children | childs
        foot | feet | foots
        tooth | teeth | tooths
        goose | geese | gooses
        knife | knives | knifes
        leaf | leaves | leafs
        city | cities | citys
        box | boxes | boxs
        woman | women | womans
    """),
    "What is the past tense of the verb {w}?": lines("""
        go | went | goed
        bring | brought | bringed
        teach | taught | teached
        write | wrote | writed
        fly | flew | flied
        swim | swam | swimmed
        choose | chose | choosed
        think | thought | thinked
        carry | carried | carryed
        buy | bought | buyed
    """),
    "What is the comparative of {w}, as in: tall, taller?": lines("""
        good | better | gooder
        bad | worse | badder
        big | bigger | biger
        happy | happier | happyer
        thin | thinner | thiner
        easy | easier | easyer
        hot | hotter | hoter
        large | larger | largeer
        heavy | heavier | heavyer
        strong | stronger | more strong
    """),
    "Which noun names a person who does this for a living: to {w}?": lines("""
        teach | teacher | teaching
        paint | painter | painting
        act | actor | acting
        write | writer | writing
        bake | baker | baking
        drive | driver | driving
        sing | singer | singing
        farm | farmer | farming
        translate | translator | translation
        photograph | photographer | photography
    """),
}


def word_form(_rng: Random) -> list[Question]:
    """Plurals, past tenses, comparatives and nouns of persons."""
    return [
        exact(
            f"{asked.format(w=word)} Answer with one word in lower case.",
            answer,
            bad,
            cluster=f"word_form/{n}",
        )
        for n, (asked, words) in enumerate(FORMS.items())
        for word, answer, bad in words
    ]


FACTS = lines("""
    What is the capital of Canada? | Ottawa | Toronto | Montreal | Vancouver
    What is the capital of Portugal? | Lisbon | Porto | Madrid | Faro
    What is the capital of Norway? | Oslo | Bergen | Stockholm | Trondheim
    What is the capital of New Zealand? | Wellington | Auckland | Sydney | Christchurch
    On which continent does Peru lie? | South America | Africa | Europe | Asia
    On which continent does Kenya lie? | Africa | Asia | Europe | South America
    Which ocean lies between Europe and North America? | the Atlantic | the Pacific | the Indian Ocean | the Southern Ocean
    Which of these countries has no coast? | Switzerland | Spain | Greece | Japan
    Through which city does the Thames flow? | London | Paris | Rome | Berlin
    Which is the highest mountain above sea level? | Mount Everest | Mont Blanc | Kilimanjaro | Mount Fuji
    Which metal has the chemical symbol Fe? | iron | gold | silver | copper
    Which element has the chemical symbol O? | oxygen | osmium | gold | hydrogen
    Water consists of oxygen and which other element? | hydrogen | carbon | nitrogen | iron
    Which gas do green plants take in from the air to grow? | carbon dioxide | helium | methane | neon
    Which planet is closest to the sun? | Mercury | Venus | Mars | Jupiter
    Which planet is known for its large rings? | Saturn | Mars | Venus | Mercury
    What does the earth travel around? | the sun | the moon | Mars | Jupiter
    Which organ pumps the blood through the body? | the heart | the liver | the stomach | the lung
    With which organ does a human breathe? | the lungs | the kidneys | the liver | the skin
    How many legs does an insect have? | six | four | eight | ten
    How many legs does a spider have? | eight | six | four | ten
    Which of these animals is a mammal? | a whale | a shark | a trout | a frog
    Which of these birds cannot fly? | a penguin | a swallow | an eagle | a gull
    What does a caterpillar turn into? | a butterfly | a worm | a spider | a bird
    At how many degrees Celsius does water boil at sea level? | 100 | 50 | 80 | 120
    At how many degrees Celsius does water freeze at sea level? | 0 | 10 | 32 | 100
    How many minutes are there in an hour? | 60 | 24 | 100 | 90
    How many days are there in a week? | seven | five | six | ten
    How many sides does a triangle have? | three | four | five | six
    How many centimetres make a metre? | 100 | 10 | 12 | 1000
    What is half of a hundred? | 50 | 25 | 40 | 200
    How many months are there in a year? | twelve | ten | eleven | thirteen
    Who wrote the play Hamlet? | William Shakespeare | Charles Dickens | Jane Austen | Mark Twain
    Who painted the Mona Lisa? | Leonardo da Vinci | Vincent van Gogh | Pablo Picasso | Claude Monet
    Which instrument has black and white keys? | the piano | the violin | the trumpet | the drum
    How many strings does a violin have? | four | two | eight | twelve
    In which direction does the sun rise? | in the east | in the west | in the north | in the south
    What colour do blue and yellow paint give when mixed? | green | red | black | white
    Which language is spoken by most people in Brazil? | Portuguese | German | Japanese | Russian
    What is bread mainly made from? | flour | sand | milk | honey
""")  # noqa: E501


LISTED = "\n{choices}\n"


def known_fact(rng: Random) -> list[Question]:
    """Lasting facts of geography, nature, measure and culture."""
    where = places(rng, len(FACTS), 4)
    return [
        chosen(
            rng,
            f"{asked}{LISTED if asked.startswith('Which of these') else ' '}Give the answer only.",
            right,
            list(wrong),
            place,
        )
        for (asked, right, *wrong), place in zip(FACTS, where, strict=True)
    ]


MEANINGS = lines("""
    The shop shuts at six. | The store closes at six. | The shop opens at six. | The shop shuts at nine.
    He gave up smoking. | He stopped smoking. | He gave us his smoking pipe. | He started smoking.
    The film bored her. | She found the film dull. | The film amused her. | She bored the film crew.
    Tom is taller than Paul. | Paul is shorter than Tom. | Paul is taller than Tom. | Tom is as tall as Paul.
    I can't find my keys. | My keys are lost. | I can find my keys. | I can't use my keys.
    The dog bit the man. | The man was bitten by the dog. | The man bit the dog. | The dog hit the man.
    It hardly ever rains here. | Rain is rare here. | It hardly stops raining here. | It always rains here.
    She bought a cheap coat. | Her new coat did not cost much. | She sold a cheap coat. | She bought an expensive coat.
    The meeting was put off. | The meeting was postponed. | The meeting was put on film. | The meeting was short.
    Nobody was late. | Everybody was on time. | Everybody was late. | Somebody was late.
    We ran out of milk. | There is no milk left. | We ran to get milk. | There is a lot of milk.
    Only Anna passed the test. | All except Anna failed the test. | Anna failed the test. | All passed the test.
    He is able to swim. | He knows how to swim. | He is about to swim. | He is unable to swim.
    The box is too heavy to lift. | One cannot lift the box: it weighs too much. | The box is light. | The box is heavy, but one can lift it.
    She left before he came. | He came after she had left. | He left before she came. | They came together.
    I look after the garden. | I take care of the garden. | I look out at the garden. | I look for the garden.
    The price doubled. | It now costs twice as much. | It now costs half as much. | The price stayed the same.
    Half of the seats are taken. | Half of the seats are free. | All of the seats are taken. | None of the seats is taken.
    He forgot to call me. | He did not call me. | He called me. | He forgot my name.
    The bridge is closed to cars. | Cars may not cross the bridge. | Cars may cross the bridge. | The bridge is close to the cars.
    They got married in May. | Their wedding was in May. | They may get married. | They met in May.
    The soup tastes of nothing. | The soup has no taste. | The soup tastes good. | Nothing tastes like the soup.
    My sister teaches French. | My sister is a teacher of French. | My sister learns French. | My sister is French.
    The train arrived early. | The train came before its time. | The train arrived late. | The train left early.
    Don't wake the baby. | Let the baby sleep. | Wake the baby up. | The baby did not wake.
    She is the only child. | She has no brothers or sisters. | She has no children. | She is only a child.
    He spends more than he earns. | His income is less than what he spends. | He earns more than he spends. | He spends all that he earns.
    The lake is deep. | It is a long way to the bottom of the lake. | The lake is shallow. | It is a long way to the lake.
    The teacher praised her essay. | The teacher said that her essay was good. | She praised the teacher's essay. | The teacher lost her essay.
    You must not park here. | Parking is forbidden here. | You need not park here. | You may park here.
    They agreed to meet again. | They decided to have another meeting. | They agreed not to meet again. | They never met again.
    The lamp is broken. | The lamp does not work. | The lamp is on. | The lamp is not broken.
""")  # noqa: E501


def same_meaning(rng: Random) -> list[Question]:
    """Which of three sentences says the same as a given one."""
    where = places(rng, len(MEANINGS), 3)
    return [
        chosen(
            rng,
            f"Which of these says the same as: {said}\n{{choices}}",
            right,
            list(wrong),
            place,
        )
        for (said, right, *wrong), place in zip(MEANINGS, where, strict=True)
    ]


READ = lines("""
    Every autumn the river floods the lower fields. The farmers move their sheep to the hill until the water falls. | Where do the sheep stay during the flood? | on the hill | in the fields | by the river | When does the river flood? | in autumn | in spring | in winter
    Emma wanted to bake, but the oven was cold: the power was out. So she made a salad instead. | Why did Emma not bake? | there was no power | she had no flour | she was ill | What did she make? | a salad | a cake | a soup
    The old clock stopped on the night of the storm. Nobody has repaired it, so the square has had no time since. | When did the clock stop? | in a stormy night | on a sunny day | last week | Who repaired the clock? | nobody | the storm | everybody
    Peter lent Laura his umbrella. When it rained on Sunday he got wet, while she stayed dry. | Who got wet? | Peter | Laura | both | Whose umbrella was it? | Peter's | Laura's | Sunday's
    The first boat takes the workers to the island, the second one brings the post, the last one the tourists. | Whom does the last boat bring? | the tourists | the workers | the post | What comes with the second boat? | the post | the workers | the tourists
    Owls hunt at night. Their soft feathers make hardly a sound, so that a mouse does not hear them coming. | Why does the mouse not hear the owl? | its feathers are soft | it is asleep | it is far away | When do owls hunt? | at night | at noon | in the morning
    The hall was booked twice by mistake: the choir sang in the kitchen, and the chess club kept the hall. | Where did the choir sing? | in the kitchen | in the hall | in the club | Who was in the hall? | the chess club | the choir | nobody
    David counted the stairs: forty up to the door, and twelve more to the roof. He never went up to the roof again. | How many stairs lead from the door to the roof? | twelve | forty | two | Where did David not go again? | to the roof | to the door | to the stairs
    Salt was once so dear that soldiers were paid with it. Today it is the cheapest thing in the kitchen. | What were soldiers paid with? | salt | bread | silver | What is salt today? | cheap | dear | rare
    After the match the losing team cleaned the changing room, as it had lost the bet as well. The winners went home. | Who cleaned the changing room? | the losers | the winners | the visitors | What did the winners do? | they went home | they cleaned | they made a bet
    The path forks at the oak. The left branch leads to the mill, the right one, which is longer, to the village. | Which way leads to the village? | the right one | the left one | both | What stands at the fork? | an oak | a mill | a house
    Sara's letter took nine days, although the post promised three. Her postcard, sent later, came the day after. | How long did the letter take? | nine days | three days | one day | Which was sent first? | the letter | the postcard | both at once
    The shop sells tea in bags and coffee in tins. Cocoa is sold out until Friday. | What cannot be bought today? | cocoa | tea | coffee | What is coffee sold in? | tins | bags | bottles
    Leon is afraid of heights, so he waited below while Clara climbed the tower and waved. | Who climbed the tower? | Clara | Leon | both | Why did Leon wait below? | he fears heights | he was tired | it was late
    In the dry year the well gave no water, and the village drank from the spring behind the church. | Where did the water come from in the dry year? | the spring | the well | the church | What was empty? | the well | the spring | the village
    The painter covered the dark wall with two coats of white. After the first one the red still showed. | What colour is the wall now? | white | red | dark | How many coats were needed? | two | one | three
""")  # noqa: E501


def read_passage(rng: Random) -> list[Question]:
    """Two questions on each of some short passages."""
    where = places(rng, 2 * len(READ), 3)
    questions = []
    for number, (passage, *rest) in enumerate(READ):
        for half in range(2):
            asked, right, *wrong = rest[4 * half : 4 * half + 4]
            questions.append(
                chosen(
                    rng,
                    f"{passage}\n{asked}",
                    right,
                    wrong,
                    where[2 * number + half],
                    cluster=f"read_passage/{number}",
                )
            )
    return questions
